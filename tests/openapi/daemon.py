"""A real daemon on loopback in a temporary directory, for the checks of the OpenAPI document and its clients."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30


class Daemon:
    """`with Daemon() as daemon:` starts it and stops it. The program is $AUTHD_DAEMON, or target/debug/codex-authd."""

    def __init__(self, **settings: str) -> None:
        self.binary = os.environ.get("AUTHD_DAEMON", str(REPOSITORY / "target/debug/codex-authd"))
        self.directory = Path(tempfile.mkdtemp(prefix="authd-openapi-"))
        self.state = self.directory / "state"
        self.pem = self.directory / "pem"
        self.listen: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(("CODEX_AUTHD_", "NOTIFY_"))}
        self._environment |= {
            "CODEX_AUTHD_" + name: value
            for name, value in {
                "STATE_DIR": str(self.state),
                "LISTEN__HOSTS": "127.0.0.1:0",
                "LISTEN__ADMIN": "127.0.0.1:0",
                "LISTEN__CONTROL": str(self.directory / "control.sock"),
                # The checks send more requests from one address than any limit allows.
                "LIMITS__GLOBAL_PER_MINUTE": "0",
                "LIMITS__HOST_PER_MINUTE": "0",
                "LIMITS__AUTH_FAIL_COUNT": "0",
                "AUTH__STORES_PER_HOST_PER_HOUR": "0",
                # No check may reach the outside.
                "UPSTREAM__RELEASES_URL": "",
                "RUNNER__ENABLED": "false",
                **settings,
            }.items()
        }

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [self.binary, "serve"], env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._listens():
            if not self.is_running() or time.monotonic() > deadline:
                raise RuntimeError("the daemon does not start:\n" + self.log.read_text()[-4000:])
            time.sleep(0.05)
        self.cli("admin-cert", "story", "--pem", str(self.pem))

    def _listens(self) -> bool:
        try:
            self.listen = json.loads((self.state / "listen.json").read_bytes())
            host, port = self.listen["admin"].rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError, KeyError):
            return False
        return True

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def cli(self, *arguments: str, stdin: str = "") -> str:
        """Runs `codex-authd ARGUMENTS` beside the daemon."""
        done = subprocess.run(
            [self.binary, *arguments],
            check=False,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"codex-authd {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout

    def places(self) -> dict[str, str]:
        """The addresses and files that a client needs, as environment variables of a story."""
        return {
            "AUTHD_HOSTS_URL": "https://" + self.listen["hosts"],
            "AUTHD_ADMIN_URL": "https://" + self.listen["admin"],
            "AUTHD_CA": str(self.pem / "server-ca.crt"),
            "AUTHD_CERTIFICATE": str(self.pem / "story.crt"),
            "AUTHD_KEY": str(self.pem / "story.key"),
        }


def login(issued_at: int, account: str = "acct-1") -> dict[str, Any]:
    """A ChatGPT login whose access token was issued at `issued_at`, in seconds since 1970. No signature is checked."""
    claims = {
        "jti": f"{account}-{issued_at}",
        "iat": issued_at,
        "https://api.openai.com/auth": {
            "chatgpt_account_id": account,
            "chatgpt_user_id": "user-1",
            "chatgpt_plan_type": "pro",
        },
    }
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    token = f"eyJhbGciOiJSUzI1NiJ9.{payload}.c2lnbmF0dXJlLW9mLW5vYm9keQ"
    return {
        "auth_mode": "chatgpt",
        "OPENAI_API_KEY": None,
        "tokens": {
            "id_token": token,
            "access_token": token,
            "refresh_token": f"rt_{account}_{issued_at}",
            "account_id": account,
        },
        "last_refresh": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(issued_at)),
    }


def login_text(issued_at: int, account: str = "acct-1") -> str:
    """Its text, in a spelling that no JSON library writes by itself."""
    return json.dumps(login(issued_at, account), indent=2).replace('": ', '" :  ') + "\n"


def places_of_story(daemon: Daemon) -> dict[str, str]:
    """What a story is told with: the places of the daemon, a login, and the login that replaces it."""
    places = daemon.places()
    for name, file, age in (("AUTHD_LOGIN", "login.json", 1000), ("AUTHD_RENEWED_LOGIN", "renewed.json", 500)):
        (daemon.directory / file).write_text(login_text(int(time.time()) - age))
        places[name] = str(daemon.directory / file)
    return places
