"""Schemathesis against a real daemon: every operation of both listeners, with ids that exist.

Fails on a 5xx, an undocumented status, header or content type, an answer against its schema, a malformed request that
is accepted, a missing check of the credential, an answer that takes longer than 10 seconds, fewer than MIN_CASES cases,
and an operation that was never answered 2xx. The exceptions are in seeds.py and fuzz.toml, with reasons.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests
import schemathesis
import urllib3
from schemathesis.core.failures import FailureGroup
from seeds import CONTROL_SOCKET, UNREACHED, Seeds, listeners_of

from daemon import REPOSITORY, Daemon

HERE = Path(__file__).resolve().parent
DOCUMENT = Path(os.environ.get("AUTHD_DOCUMENT", REPOSITORY / "openapi/openapi.json"))
MIN_CASES = 10_000
# Together with the examples and the boundary values of each operation, this makes more than MIN_CASES.
RANDOM_CASES_PER_OPERATION = int(os.environ.get("AUTHD_FUZZ_CASES", "90"))
# One process each: LISTENER, NUMBER, of how many.
SHARDS = [("hosts", 0, 1), ("admin", 0, 2), ("admin", 1, 2)]
SETTINGS = {
    # So that each operation needs the credential that the document names.
    "ADMIN__ACCESS": "login",
    # Probes are asked for, and fail at once.
    "RUNNER__ENABLED": "true",
    "RUNNER__CODEX": "/nowhere/codex",
    "HOSTS__MAX_PER_MEMBER": "100000",
}


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "put", "post", "delete", "patch")
    ]


def part_of(document: dict[str, Any], listener: str, shard: int = 0, shards: int = 1) -> dict[str, Any]:
    """Each `shards`th path of one listener. The address is an argument."""
    paths: dict[str, Any] = {}
    for path, method, operation in operations(document):
        if listener in listeners_of(operation):
            paths.setdefault(path, {})[method] = {k: v for k, v in operation.items() if k != "servers"}
    return {**document, "paths": dict(list(paths.items())[shard::shards]), "servers": [{"url": "/"}]}


def reach(document: dict[str, Any], seeds: Seeds) -> list[str]:
    """One valid request for each operation; returns what is wrong."""
    wrong = []
    for listener in ("hosts", "admin"):
        part = part_of(document, listener)
        schema = schemathesis.openapi.from_dict(part)
        for path, method, operation in in_order(operations(part)):
            name = operation["operationId"]
            if name in UNREACHED:
                continue
            request = seeds.valid_request(name)
            parameters = {
                one["name"]: "server" if one["name"] == "role" else seeds.take(name, path)
                for one in operation.get("parameters", [])
                if one["in"] == "path"
            }
            schemes = {scheme for one in operation.get("security", []) for scheme in one}
            headers = {"Authorization": "Bearer " + seeds.credential(name, schemes)} if schemes else {}
            case = schema[path][method.upper()].Case(path_parameters=parameters, headers=headers, **request)
            try:
                answer = case.call_and_validate(base_url=seeds.urls[listener], verify=False, timeout=10)
            except (FailureGroup, requests.RequestException) as refused:
                wrong.append(f"{name}: {refused}")
            else:
                if not 200 <= answer.status_code < 300:
                    wrong.append(f"{name}: {answer.status_code} {answer.text}")
    return wrong


def in_order(all_of_them: list[tuple[str, str, dict[str, Any]]]) -> list[tuple[str, str, dict[str, Any]]]:
    """What has to be there first, first; what ends something, last."""
    first = ["uploadAuth", "linkIdentity", "prepareAuthority", "activateAuthority"]
    last = ["unlinkIdentity", "disableHost", "enableHost", "disableUser", "enableUser", "retireAuthority"]

    def rank(one: tuple[str, str, dict[str, Any]]) -> int:
        name = one[2]["operationId"]
        return first.index(name) - len(first) if name in first else last.index(name) + 1 if name in last else 0

    return sorted(all_of_them, key=rank)


class Run:
    """One Schemathesis process with a part of the operations."""

    def __init__(self, name: str, document: dict[str, Any], daemon: Daemon, url: str) -> None:
        directory = daemon.directory
        file = directory / f"{name}.json"
        file.write_text(json.dumps(document))
        self._answers = directory / f"answers-{name}.json"
        self._report = directory / f"report-{name}.json"
        self._out = directory / f"out-{name}"
        environment = os.environ | {
            "AUTHD_FUZZ_SEEDS": str(directory / "seeds.json"),
            "AUTHD_FUZZ_ANSWERS": str(self._answers),
            "PYTHONPATH": str(HERE),
            # Without it, each new connection reads all authorities of the system.
            "SSL_CERT_FILE": str(daemon.pem / "server-ca.crt"),
        }
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "fuzz.toml")]
                + ["run", str(file), "--url", url]
                + ["--max-examples", str(RANDOM_CASES_PER_OPERATION)]
                + ["--report", "json", "--report-json-path", str(self._report)],
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def output(self) -> str:
        return self._out.read_text()

    def cases(self) -> int:
        return int(json.loads(self._report.read_bytes())["test_cases"]["generated"])

    def answers(self) -> dict[str, dict[str, int]]:
        """How often each operation was answered with each status."""
        counted: dict[str, dict[str, int]] = json.loads(self._answers.read_bytes())
        return counted


def fuzz(
    document: dict[str, Any], daemon: Daemon, seeds: Seeds
) -> tuple[bool, int, dict[str, collections.Counter[str]]]:
    """Whether all is well, the number of cases, and the answers."""
    seeds.save(daemon.directory / "seeds.json")
    runs: list[Run] = []
    try:
        for listener, shard, shards in SHARDS:
            part = part_of(document, listener, shard, shards)
            runs.append(Run(f"{listener}-{shard}", part, daemon, seeds.urls[listener]))
        well, cases = True, 0
        answers: dict[str, collections.Counter[str]] = {}
        for run in runs:
            if run.process.wait() != 0:
                well = False
                print(run.output())
            cases += run.cases()
            for name, counted in run.answers().items():
                answers.setdefault(name, collections.Counter()).update(counted)
        return well, cases, answers
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()


def main() -> int:
    # For each of some thousand requests: the reason why no certificate is checked is in seeds.py.
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    document = json.loads(DOCUMENT.read_bytes())
    began = time.monotonic()
    with Daemon(**SETTINGS) as daemon:
        seeds = Seeds(daemon)
        wrong = reach(document, seeds)
        well, cases, answers = fuzz(document, daemon, seeds)
        if not daemon.is_running():
            wrong.append("the daemon ended:\n" + daemon.log.read_text()[-4000:])
    for _, _, operation in operations(document):
        name = operation["operationId"]
        if not listeners_of(operation):
            print(f"{name}: not called: {CONTROL_SOCKET}")
            continue
        reason = f"; no 2xx: {UNREACHED[name]}" if name in UNREACHED else ""
        statuses = ", ".join(f"{count} × {status}" for status, count in sorted(answers.get(name, {}).items()))
        print(f"{name}: {statuses}{reason}")
        if well and not statuses:
            wrong.append(f"{name}: no case")
    if well and cases < MIN_CASES:
        wrong.append(f"fewer than {MIN_CASES} cases")
    for one in wrong:
        print("wrong:", one)
    print(f"{cases} cases in {time.monotonic() - began:.0f} seconds")
    return int(bool(wrong) or not well)


if __name__ == "__main__":
    sys.exit(main())
