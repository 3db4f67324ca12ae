"""The packed clients of dist/clients, installed as a user would, for the programs that use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from daemon import REPOSITORY

DIST = REPOSITORY / "dist/clients"
# Only these come from elsewhere: the packages that the clients depend on, and the types of Node.js.
NODE_PACKAGES = ("openapi-fetch", "openapi-typescript-helpers", "@types", "undici-types")
TOOLS = Path(sys.executable).parent.parent.parent


def only(pattern: str) -> Path:
    found = list(DIST.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{DIST} has {len(found)} files {pattern}: run `make clients`")
    return found[0]


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed in {cwd}:\n{done.stdout}{done.stderr}")


class Python:
    """Programs with the wheel installed, in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = {"PYTHONPATH": str(directory / "packages"), "MYPYPATH": str(directory / "packages")}
        directory.mkdir(parents=True)
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check")
        run(*pip, "--target", str(directory / "packages"), only("*.whl"), cwd=directory)

    def check(self) -> None:
        """All programs under mypy's strictest rules; those of the generated code are checked when it is made."""
        programs = sorted(self.directory.glob("*.py"))
        run(
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--scripts-are-modules",
            *programs,
            cwd=self.directory,
            environment=self._environment,
        )

    def run(self, program: str, environment: dict[str, str]) -> None:
        run(sys.executable, program + ".py", cwd=self.directory, environment=self._environment | environment)


class TypeScript:
    """Programs with the npm package installed, in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        modules = directory / "node_modules"
        modules.mkdir(parents=True)
        with tarfile.open(only("*.tgz")) as packed:
            packed.extractall(modules, filter="data")
        (modules / "package").rename(modules / "codex-authd-client")
        for name in NODE_PACKAGES:
            (modules / name).symlink_to(TOOLS / "node_modules" / name)
        (directory / "package.json").write_text('{"type": "module"}\n')
        shutil.copy(REPOSITORY / "tests/openapi/stories/typescript/tsconfig.json", directory)

    def check(self) -> None:
        """Compiles all programs under the strictest rules of tsc."""
        run(TOOLS / "node_modules/.bin/tsc", "--project", ".", cwd=self.directory)

    def run(self, program: str, environment: dict[str, str]) -> None:
        run("node", program + ".js", cwd=self.directory, environment=environment)
