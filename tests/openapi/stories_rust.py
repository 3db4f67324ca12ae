"""The host's story and the admin's story in Rust, against a real daemon, over TLS with a client certificate."""

from __future__ import annotations

import os
import subprocess
import time

from daemon import REPOSITORY, Daemon, login_text


def main() -> None:
    for story in ("host", "admin"):
        with Daemon() as daemon:
            now = int(time.time())
            (daemon.directory / "login.json").write_text(login_text(now - 1000))
            (daemon.directory / "renewed.json").write_text(login_text(now - 500))
            files = {
                "AUTHD_LOGIN": str(daemon.directory / "login.json"),
                "AUTHD_RENEWED_LOGIN": str(daemon.directory / "renewed.json"),
            }
            subprocess.run(
                ["cargo", "run", "--quiet", "--locked", "--package", "codex-authd-client", "--example", story],
                check=True,
                cwd=REPOSITORY,
                env=os.environ | daemon.places() | files,
            )
        print(f"rust: the {story}'s story is told")


if __name__ == "__main__":
    main()
