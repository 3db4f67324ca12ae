"""The admin's story: uploads a login, lists hosts page by page, reads the audit log, rotates a key, rolls back."""

import os
from pathlib import Path

from codex_authd_client import ApiError, connect, document, pages, value
from codex_authd_client.generated.api.admin_audit import list_audit
from codex_authd_client.generated.api.admin_auth import get_auth_history, roll_back_auth, upload_auth
from codex_authd_client.generated.api.admin_hosts import get_host, list_hosts, register_host, remove_host
from codex_authd_client.generated.models import RegisterRequest, RollbackRequest, UploadRequest

HOSTS = 5


def main() -> None:
    ca = os.environ["AUTHD_CA"]
    certificate = (os.environ["AUTHD_CERTIFICATE"], os.environ["AUTHD_KEY"])
    login = Path(os.environ["AUTHD_LOGIN"]).read_text()
    renewed = Path(os.environ["AUTHD_RENEWED_LOGIN"]).read_text()

    with connect(os.environ["AUTHD_ADMIN_URL"], ca=ca, certificate=certificate) as admin:
        first = value(upload_auth.sync_detailed(client=admin, body=UploadRequest(auth_text=login)))
        second = value(upload_auth.sync_detailed(client=admin, body=UploadRequest(auth_text=renewed)))
        assert second.canonical_digest and second.canonical_digest != first.canonical_digest

        names = {f"page-{number}.example.com" for number in range(HOSTS)}
        ids = {}
        old_key = ""
        for name in sorted(names):
            made = value(register_host.sync_detailed(client=admin, body=RegisterRequest(fqdn=name)))
            ids[name] = made.host.id
            old_key = made.host.api_key

        seen: list[str] = []
        for page in pages(lambda cursor: list_hosts.sync_detailed(client=admin, limit=2, cursor=cursor)):
            assert len(page.hosts) <= 2
            seen.extend(host.fqdn for host in page.hosts)
        assert len(seen) == len(set(seen)) and names <= set(seen), seen

        # Registering a host again gives it a new key; the old one is refused at once.
        rotated = value(register_host.sync_detailed(client=admin, body=RegisterRequest(fqdn="page-4.example.com")))
        assert rotated.host.id == ids["page-4.example.com"] and rotated.host.api_key != old_key
        with connect(os.environ["AUTHD_HOSTS_URL"], ca=ca, api_key=old_key) as host:
            try:
                document(host)
            except ApiError as refused:
                assert refused.status == 401, refused
            else:
                raise AssertionError("the old key still works")

        actions: list[str] = []
        for audit in pages(lambda cursor: list_audit.sync_detailed(client=admin, limit=3, cursor=cursor)):
            actions.extend(entry.action for entry in audit.entries)
        assert len(actions) >= HOSTS + 3, actions

        versions = [
            version
            for history in pages(lambda cursor: get_auth_history.sync_detailed(client=admin, limit=1, cursor=cursor))
            for version in history.versions
        ]
        old = next(version for version in versions if version.digest == first.canonical_digest)
        back = value(roll_back_auth.sync_detailed(client=admin, body=RollbackRequest(version=old.version)))
        assert back.version.version > old.version

        for name, number in ids.items():
            assert value(remove_host.sync_detailed(number, client=admin)).deleted == name
        try:
            value(get_host.sync_detailed(ids["page-0.example.com"], client=admin))
        except ApiError as refused:
            assert refused.status == 404 and refused.code, refused
        else:
            raise AssertionError("a removed host is still listed")


main()
