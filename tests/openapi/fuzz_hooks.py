"""Loaded by Schemathesis (fuzz.py): gives requests a credential and existing ids, and counts answers."""

from __future__ import annotations

import atexit
import collections
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode
from seeds import Seeds

# How many of the well-formed requests are about something that exists.
EXISTING = 0.8

seeds = Seeds.load(Path(os.environ["AUTHD_FUZZ_SEEDS"]))
chance = random.Random(17)
lock = threading.Lock()
answers: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)


def operation_of(case: Any) -> str:
    return str(case.operation.definition.raw["operationId"])


@schemathesis.auth(refresh_interval=None)
class Credential:
    def get(self, case: Any, _context: Any) -> str | None:
        schemes = {name for one in case.operation.definition.raw.get("security", []) for name in one}
        with lock:
            return seeds.credential(operation_of(case), schemes) if schemes else None

    def set(self, case: Any, data: str | None, _context: Any) -> None:
        if data is not None:
            case.headers["Authorization"] = "Bearer " + data


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    operation = operation_of(case)
    if operation == "setApiState" and isinstance(case.body, dict) and case.body.get("disabled") is True:
        # Switched off, the daemon answers every host with 503, also those that the other process asks for just now.
        case.body["disabled"] = False
    well_formed = case.meta is None or case.meta.generation.mode == GenerationMode.POSITIVE
    if not well_formed or not case.path_parameters or chance.random() > EXISTING:
        return
    with lock:
        if seeds.pool(operation, case.operation.path):
            name = next((n for n in case.path_parameters if n in ("id", "token", "fingerprint")), None)
            if name:
                case.path_parameters[name] = seeds.take(operation, case.operation.path)


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    with lock:
        answers[operation_of(case)][response.status_code] += 1


@atexit.register
def save() -> None:
    Path(os.environ["AUTHD_FUZZ_ANSWERS"]).write_text(json.dumps(answers))
