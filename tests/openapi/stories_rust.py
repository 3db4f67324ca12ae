"""The host's story and the admin's story in Rust, against a real daemon, over TLS with a client certificate."""

from __future__ import annotations

import os
import subprocess

from daemon import REPOSITORY, Daemon, places_of_story


def main() -> None:
    for story in ("host", "admin"):
        with Daemon() as daemon:
            subprocess.run(
                ["cargo", "run", "--quiet", "--locked", "--package", "codex-authd-client", "--example", story],
                check=True,
                cwd=REPOSITORY,
                env=os.environ | places_of_story(daemon),
            )
        print(f"rust: the {story}'s story is told")


if __name__ == "__main__":
    main()
