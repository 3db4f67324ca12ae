"""The connection: whom the client trusts, and what it shows to be let in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from importlib.metadata import version

import httpx

from .generated import AuthenticatedClient

DEFAULT_TIMEOUT_SECONDS = 60.0


class _Bearer(httpx.Auth):
    """Adds the token to each request; the token is in no repr."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def connect(
    base_url: str,
    *,
    ca: str | os.PathLike[str] | None = None,
    certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    access_token: str | None = None,
    api_key: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> AuthenticatedClient:
    """Opens a client of the listener at `base_url`; a `with` statement closes its connections.

    ca: PEM file of the only authority that is trusted (`server-ca.crt`). None: the authorities that the system trusts.
    certificate: PEM files of an admin's certificate and its private key, for the admin listener.
    access_token: of a signed-in user. api_key: of a host. One of them at most.
    timeout: seconds until httpx.TimeoutException.
    """
    if access_token is not None and api_key is not None:
        raise ValueError("give an access token or an API key, not both")
    trust = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        trust.load_cert_chain(*certificate)
    token = api_key if access_token is None else access_token
    # The generated class always sends a header with a token. Here that is the User-Agent; httpx adds the real token,
    # which a client with a certificate does not have.
    return AuthenticatedClient(
        base_url=base_url.rstrip("/"),
        token=f"codex-authd-client/{version('codex-authd-client')}",
        prefix="",
        auth_header_name="User-Agent",
        verify_ssl=trust,
        timeout=httpx.Timeout(timeout),
        httpx_args={"auth": None if token is None else _Bearer(token)},
    )
