"""Every program of openapi/README.md, as it stands there, with the packed clients against a real daemon."""

from __future__ import annotations

import re
import shutil
import ssl
import tempfile
import time
from pathlib import Path

import httpx
from installed import Python, TypeScript, run

from daemon import REPOSITORY, Daemon, login_text

README = REPOSITORY / "openapi/README.md"
RUST_EXAMPLE = REPOSITORY / "openapi/clients/rust/examples/hosts.rs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def programs(text: str, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def main() -> None:
    text = README.read_text()
    directory = Path(tempfile.mkdtemp(prefix="authd-readme-"))
    try:
        with Daemon() as daemon:
            text = text.replace("https://auth.example.com:8443", "https://" + daemon.listen["hosts"])
            text = text.replace("https://auth.example.com:9443", "https://" + daemon.listen["admin"])
            key = prepare(daemon)
            for language, kind, suffix in (("python", Python, "py"), ("typescript", TypeScript, "ts")):
                place = kind(directory / language)
                shutil.copy(daemon.pem / "server-ca.crt", place.directory)
                for end in ("crt", "key"):
                    shutil.copy(daemon.pem / f"story.{end}", place.directory / f"alice.{end}")
                (place.directory / "inventory.txt").write_text("rack-1.example.com\nrack-2.example.com\n")
                found = programs(text, language)
                assert found, f"no {language} in {README}"
                for number, code in enumerate(found):
                    (place.directory / f"program_{number}.{suffix}").write_text(code)
                place.check()
                environment = {"CODEX_AUTHD_KEY": key, "CODEX_HOME": str(place.directory), "ROUNDS": "1"}
                for number in range(len(found)):
                    place.run(f"program_{number}", environment)
                print(f"{language}: {len(found)} programs of {README.name} ran")
            rust(directory / "python", "https://" + daemon.listen["admin"])
            fetched = directory / "python/auth.json"
            assert '"access_token"' in fetched.read_text() and fetched.stat().st_mode & 0o077 == 0
            with admin_of(daemon) as admin:
                names = {host["fqdn"] for host in admin.get("/admin/hosts").json()["data"]["hosts"]}
            assert names == {"ci.example.com", "build-7.example.com", "rack-1.example.com", "rack-2.example.com"}, names
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def rust(directory: Path, url: str) -> None:
    """The program in Rust is an example of the crate; the directory has the files that it reads."""
    shown = programs(README.read_text(), "rust")
    assert shown == [RUST_EXAMPLE.read_text()], f"{README} does not show {RUST_EXAMPLE}"
    manifest = str(REPOSITORY / "Cargo.toml")
    cargo = ("cargo", "run", "--quiet", "--locked", "--manifest-path", manifest, "--package", "codex-authd-client")
    run(*cargo, "--example", RUST_EXAMPLE.stem, url, cwd=directory)
    print(f"rust: {len(shown)} programs of {README.name} ran")


def admin_of(daemon: Daemon) -> httpx.Client:
    trust = ssl.create_default_context(cafile=str(daemon.pem / "server-ca.crt"))
    trust.load_cert_chain(daemon.pem / "story.crt", daemon.pem / "story.key")
    return httpx.Client(base_url="https://" + daemon.listen["admin"], verify=trust)


def prepare(daemon: Daemon) -> str:
    """Uploads a login and registers the CI job's host; returns its key."""
    with admin_of(daemon) as admin:
        uploaded = admin.post("/admin/auth/upload", json={"auth_text": login_text(int(time.time()))})
        assert uploaded.status_code == 200, uploaded.text
        made = admin.post("/admin/hosts/register", json={"fqdn": "ci.example.com"})
        return str(made.json()["data"]["host"]["api_key"])


if __name__ == "__main__":
    main()
