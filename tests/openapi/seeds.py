"""What the fuzzed requests are about: hosts, users, sessions and certificates, and a valid request per operation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from daemon import Daemon, login, login_text

PASSWORD = "four words that differ"
ADMIN = "admin@example.com"
# How many things each operation that ends one can end.
POOL = 6

# Operations without a 2xx in this check, with the reason.
UNREACHED = {
    "beginOidcSignIn": "a redirect to an identity provider; tests/integration/oidc.rs has a real one",
    "finishOidcSignIn": "needs the answer of an identity provider; tests/integration/oidc.rs has a real one",
}
# Operations that neither listener has, with the reason.
CONTROL_SOCKET = "on the control socket only; tests/integration/backups.rs and moving.rs call them there"


# What the document says about the servers: the default port of each listener.
PORTS = {"8443": "hosts", "9443": "admin"}


def listeners_of(operation: dict[str, Any]) -> set[str]:
    """The listeners that have this operation; none: it is on the control socket only."""
    ports = {server.get("variables", {}).get("port", {}).get("default") for server in operation["servers"]}
    return {PORTS[port] for port in ports if port is not None}


class Seeds:
    """pools: what path parameters may be. A pool named after an operation is used up by it; the last one stays."""

    def __init__(self, daemon: Daemon) -> None:
        daemon.cli("create-admin", ADMIN, "--password-stdin", stdin=PASSWORD + "\n")
        places = daemon.places()
        self.urls = {"hosts": places["AUTHD_HOSTS_URL"], "admin": places["AUTHD_ADMIN_URL"]}
        # An operation that is called may replace the authority, so that no certificate is checked here.
        self._http = httpx.Client(verify=False, timeout=30)
        self.token = self._sign_in(ADMIN)
        self._now = int(time.time())
        self.admin("POST", "/admin/auth/upload", {"auth_text": login_text(self._now - 1000)})
        self.pools: dict[str, list[Any]] = {}
        self._make_hosts()
        self._make_users()
        self._make_certificates()

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(
            method, self.urls["admin"] + path, json=body, headers={"Authorization": "Bearer " + self.token}
        )
        if not answer.is_success:
            raise RuntimeError(f"seeding: {method} {path}: {answer.status_code} {answer.text}")
        return answer.json()["data"]

    def _sign_in(self, email: str) -> str:
        answer = self._http.post(self.urls["hosts"] + "/auth/session", json={"email": email, "password": PASSWORD})
        return str(answer.json()["data"]["access_token"])

    def _register(self, name: str, **more: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.admin("POST", "/admin/hosts/register", {"fqdn": f"{name}.example.com", **more})
        return made

    def _make_hosts(self) -> None:
        served = [self._register(f"served-{n}")["host"] for n in range(2)]
        self.key = served[0]["api_key"]
        self.pools["hosts"] = [served[1]["id"]]
        self.pools["insecure"] = [self._register("insecure", secure=False)["host"]["id"]]
        self.pools["removeHost"] = [self._register(f"remove-{n}")["host"]["id"] for n in range(POOL)]
        self.pools["leave"] = [self._register(f"leave-{n}")["host"]["api_key"] for n in range(POOL)]
        self.pools["restoreHost"] = []
        for n in range(POOL):
            number = self._register(f"removed-{n}")["host"]["id"]
            self.admin("DELETE", f"/admin/hosts/{number}")
            self.pools["restoreHost"].append(number)
        tokens = [self._register(f"install-{n}")["installer"]["token"] for n in range(POOL + 1)]
        self.pools["install"], self.pools["startInstall"] = tokens[1:], tokens[:1]
        for n in range(POOL):
            self._register(f"revoke-{n}")
        self.pools["revokeInstaller"] = [
            one["id"]
            for one in self.admin("GET", "/admin/installers")["installers"]
            if str(one["fqdn"]).startswith("revoke-")
        ]

    def _make_users(self) -> None:
        for name in ("other", "one", "two", "three", "victim"):
            user = self.admin(
                "POST", "/auth/users", {"email": f"{name}@example.com", "role": "member", "password": PASSWORD}
            )
            self.pools["users"] = [user["user"]["id"]]
        self.pools["endSession"] = self._sessions("other@example.com")
        self.pools["endOwnSession"] = self._sessions(ADMIN)
        self.pools["signOut"] = [self._sign_in(ADMIN) for _ in range(POOL)]
        # Whoever sets a new password is signed out everywhere: one user for each listener, and one for wrong requests.
        self.pools["setOwnPassword"] = [self._sign_in(f"{name}@example.com") for name in ("one", "two", "three")]
        self.pools["removeOwnHost"] = [
            self._http.post(
                self.urls["hosts"] + "/auth/me/hosts",
                json={"fqdn": f"own-{n}.example.com"},
                headers={"Authorization": "Bearer " + self.token},
            ).json()["data"]["host"]["id"]
            for n in range(POOL)
        ]

    def _sessions(self, email: str) -> list[str]:
        """The ids of POOL new sessions of this user."""
        before = {one["id"] for one in self.admin("GET", "/auth/sessions")["sessions"]}
        for _ in range(POOL):
            self._sign_in(email)
        return [one["id"] for one in self.admin("GET", "/auth/sessions")["sessions"] if one["id"] not in before]

    def _make_certificates(self) -> None:
        made = [
            self.admin("POST", "/admin/certificates", {"name": f"cert-{n}"})["fingerprint"] for n in range(POOL + 1)
        ]
        self.pools["revokeCertificate"], self.pools["certificates"] = made[1:], made[:1]

    def pool(self, operation: str, path: str) -> list[Any]:
        """What the path's parameter may be, or nothing."""
        if operation in self.pools:
            return self.pools[operation]
        if "/insecure/" in path:
            return self.pools["insecure"]
        for start, name in (
            ("/admin/hosts/", "hosts"),
            ("/auth/users/", "users"),
            ("/admin/certificates/", "certificates"),
        ):
            if path.startswith(start):
                return self.pools[name]
        return []

    def take(self, operation: str, path: str) -> Any:
        pool = self.pool(operation, path)
        return pool.pop() if len(pool) > 1 and operation in self.pools else pool[-1]

    def credential(self, operation: str, schemes: set[str]) -> str:
        """A token that the operation accepts."""
        if operation in ("leave", "signOut", "setOwnPassword"):
            return str(self.take(operation, ""))
        return self.token if "AccessToken" in schemes else self.key

    def valid_request(self, operation: str) -> dict[str, Any]:
        """Body and query of a request that is answered 2xx."""
        make: dict[str, Callable[[], dict[str, Any]]] = {
            "addUser": lambda: {"body": {"email": "ada@example.com", "role": "member", "password": PASSWORD}},
            "diffAuth": lambda: {"query": {"from": 1, "to": 2}},
            "issueCertificate": lambda: {"body": {"name": "alice"}},
            "linkIdentity": lambda: {
                "body": {"issuer": "https://id.example.com", "subject": "1", "user": "victim@example.com"}
            },
            "unlinkIdentity": lambda: {"body": {"issuer": "https://id.example.com", "subject": "1"}},
            "registerHost": lambda: {"body": {"fqdn": "build-7.example.com"}},
            "registerOwnHost": lambda: {"body": {"fqdn": "laptop.example.com"}},
            "renewCertificate": lambda: {"body": {}},
            # The hosts of the seeds never learn of the next authority.
            "retireAuthority": lambda: {"query": {"force": "true"}},
            "rollBackAuth": lambda: {"body": {"version": 1}},
            "setApiState": lambda: {"body": {"disabled": False}},
            "setHostExpiry": lambda: {"body": {"expires_at": "2099-01-01T00:00:00Z"}},
            "setHostNetworks": lambda: {"body": {"networks": ["127.0.0.0/8"]}},
            "setOwnPassword": lambda: {"body": {"current": PASSWORD, "new": PASSWORD + "!"}},
            "setRoaming": lambda: {"body": {"allow": True}},
            "setUserMaxHosts": lambda: {"body": {"max_hosts": 3}},
            "setUserPassword": lambda: {"body": {"password": PASSWORD}},
            "setUserRole": lambda: {"body": {"role": "viewer"}},
            "signIn": lambda: {"body": {"email": ADMIN, "password": PASSWORD}},
            "syncAuth": lambda: {
                "body": {
                    "command": "retrieve",
                    "digest": "0" * 64,
                    "last_refresh": login(self._now - 5000)["last_refresh"],
                }
            },
            "syncAuthLines": lambda: {
                "body": {
                    "command": "retrieve",
                    "digest": "0" * 64,
                    "last_refresh": login(self._now - 5000)["last_refresh"],
                }
            },
            "tieCertificate": lambda: {"body": {"user": ADMIN}},
            "uploadAuth": lambda: {"body": {"auth_text": login_text(self._now - 500)}},
        }
        return make.get(operation, dict)()

    def save(self, file: Path) -> None:
        state = {"urls": self.urls, "token": self.token, "key": self.key, "pools": self.pools, "now": self._now}
        file.write_text(json.dumps(state))

    @classmethod
    def load(cls, file: Path) -> Seeds:
        seeds = cls.__new__(cls)
        state = json.loads(file.read_text())
        seeds.urls, seeds.token, seeds.key, seeds.pools = (state[name] for name in ("urls", "token", "key", "pools"))
        seeds._now = state["now"]
        return seeds
