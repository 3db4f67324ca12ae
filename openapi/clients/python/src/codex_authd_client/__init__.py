"""Client of codex-authd. The operations are in `codex_authd_client.generated.api`."""

from .answers import ApiError, pages, value
from .connection import connect
from .document import Document, document
from .generated import AuthenticatedClient

__all__ = ["ApiError", "AuthenticatedClient", "Document", "connect", "document", "pages", "value"]
