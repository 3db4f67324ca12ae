"""The canonical login, byte for byte. JSON libraries change spaces and numbers; its digest then no longer matches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from http import HTTPStatus

from .answers import ApiError, failure
from .generated import AuthenticatedClient
from .generated.models import ErrorBody


@dataclass(frozen=True)
class Document:
    """etag: for the next call of `document`; digest: the SHA-256 of the bytes, in lower-case hex digits."""

    content: bytes = field(repr=False)
    etag: str
    digest: str


def document(client: AuthenticatedClient, etag: str | None = None) -> Document | None:
    """Fetches the login of the host whose API key the client has. None: it is still the one with this `etag`."""
    headers = {} if etag is None else {"If-None-Match": etag}
    answer = client.get_httpx_client().get("/auth/document", headers=headers)
    if answer.status_code == HTTPStatus.NOT_MODIFIED:
        return None
    if answer.status_code != HTTPStatus.OK:
        try:
            body = ErrorBody.from_dict(answer.json())
        except (ValueError, KeyError, TypeError):
            body = None
        raise failure(answer.status_code, body)
    tag = answer.headers.get("ETag", "")
    digest = hashlib.sha256(answer.content).hexdigest()
    if tag != f'"{digest}"':
        raise ApiError(answer.status_code, "", "the document is not the one that its ETag names")
    return Document(answer.content, tag, digest)
