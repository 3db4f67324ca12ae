"""The host's story: an admin registers it, it redeems its token, retrieves, stores and removes itself."""

import hashlib
import json
import os
from pathlib import Path

from codex_authd_client import ApiError, connect, document, value
from codex_authd_client.generated.api.admin_auth import upload_auth
from codex_authd_client.generated.api.admin_hosts import register_host
from codex_authd_client.generated.api.auth import leave, sync_auth
from codex_authd_client.generated.api.install import install
from codex_authd_client.generated.models import (
    RegisterRequest,
    RetrieveRequest,
    StoreRequest,
    UploadRequest,
)

NO_DIGEST = "0" * 64


def main() -> None:
    ca = os.environ["AUTHD_CA"]
    certificate = (os.environ["AUTHD_CERTIFICATE"], os.environ["AUTHD_KEY"])
    login = Path(os.environ["AUTHD_LOGIN"]).read_text()
    renewed = Path(os.environ["AUTHD_RENEWED_LOGIN"]).read_text()

    with connect(os.environ["AUTHD_ADMIN_URL"], ca=ca, certificate=certificate) as admin:
        value(upload_auth.sync_detailed(client=admin, body=UploadRequest(auth_text=login)))
        registration = value(register_host.sync_detailed(client=admin, body=RegisterRequest(fqdn="py.example.com")))
        assert registration.host.secure
        key = registration.host.api_key
        for shown in (repr(registration), repr(admin)):
            assert key not in shown and registration.installer.token not in shown

    with connect(os.environ["AUTHD_HOSTS_URL"], ca=ca) as anybody:
        script = install.sync_detailed(registration.installer.token, client=anybody)
        assert script.status_code == 200 and isinstance(script.parsed, str) and key in script.parsed
        again = install.sync_detailed(registration.installer.token, client=anybody)
        assert again.status_code == 410, again

    with connect(os.environ["AUTHD_HOSTS_URL"], ca=ca, api_key=key) as host:
        assert key not in repr(host)
        request = RetrieveRequest(command="retrieve", digest=NO_DIGEST, last_refresh="2020-01-01T00:00:00Z")
        answer = value(sync_auth.sync_detailed(client=host, body=request))
        assert answer.status == "outdated" and answer.auth_text, answer.status
        text = answer.auth_text.encode()
        assert hashlib.sha256(text).hexdigest() == answer.canonical_digest
        assert answer.api_calls >= 1

        exact = document(host)
        assert exact is not None and exact.content == text and exact.digest == answer.canonical_digest
        assert document(host, exact.etag) is None
        assert "access_token" not in repr(exact)

        request = RetrieveRequest(
            command="retrieve", digest=exact.digest, last_refresh=json.loads(text)["last_refresh"]
        )
        assert value(sync_auth.sync_detailed(client=host, body=request)).status == "valid"

        stored = value(sync_auth.sync_detailed(client=host, body=StoreRequest(command="store", auth_text=renewed)))
        assert stored.status == "updated" and stored.canonical_digest != exact.digest
        newer = document(host, exact.etag)
        assert newer is not None and newer.digest == stored.canonical_digest

        assert value(leave.sync_detailed(client=host)).deleted == "py.example.com"
        try:
            document(host)
        except ApiError as refused:
            assert refused.status == 401 and refused.code and key not in str(refused)
        else:
            raise AssertionError("a removed host is still served")


main()
