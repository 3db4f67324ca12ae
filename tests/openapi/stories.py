"""The host's story and the admin's story, in Python and TypeScript, with the packed clients against a real daemon.

The programs pass the strict checks of their language without a cast or an ignored error. The daemon is real, over TLS;
the admin's side shows a client certificate of `codex-authd admin-cert NAME --pem DIR`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from installed import Python, TypeScript

from daemon import REPOSITORY, Daemon, places_of_story

STORIES = REPOSITORY / "tests/openapi/stories"
# What would hide an error of type from the checks.
EVASIONS = re.compile(
    r"\bcast\(|type: ignore|: Any\b|\bas (?!const\b|file\b)[A-Za-z{]|@ts-|: any\b|[\w\])]!\.|\bsatisfies\b"
)


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="authd-stories-"))
    try:
        for language, kind, suffix in (("python", Python, "py"), ("typescript", TypeScript, "ts")):
            programs = kind(directory / language)
            for source in sorted((STORIES / language).glob("*." + suffix)):
                for number, line in enumerate(source.read_text().splitlines(), 1):
                    if EVASIONS.search(line) and not line.lstrip().startswith(
                        ("#", "//", "*", "except", "with", "for")
                    ):
                        raise SystemExit(f"{source}:{number}: the checks of types are evaded: {line.strip()}")
                shutil.copy(source, programs.directory)
            programs.check()
            for story in ("host", "admin"):
                with Daemon() as daemon:
                    programs.run(story, places_of_story(daemon))
                print(f"{language}: the {story}'s story is told")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
