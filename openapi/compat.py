#!/usr/bin/env python3
"""Does openapi.json break a client that was generated from the last release?

    compat.py [OLD NEW]       released.json and openapi.json beside this file

Prints every change that breaks one, and exits 1 if there is any and `info.version` does not announce it: before 1.0 by
a higher minor version, from then on by a higher major one. A change breaks a client if its calls no longer compile or
are refused, or if it can no longer read an answer. At a release, released.json becomes a copy of openapi.json.

The generators turn a closed set into an enumeration that knows no other value, and a member that may be missing into
another type than one that is there. So new values in an answer count, and so does every change of `required`. Not
counted: new operations, new members that may be missing, new error statuses, descriptions and examples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
REQUEST, ANSWER = "request", "answer"
# Limits, and whether a lower number is the narrower one.
LIMITS = {
    "maximum": True,
    "maxLength": True,
    "maxItems": True,
    "maxProperties": True,
    "minimum": False,
    "minLength": False,
    "minItems": False,
    "minProperties": False,
}

Document = dict[str, Any]


def resolve(document: Document, value: Any) -> Any:
    while isinstance(value, dict) and "$ref" in value:
        target: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        value = target
    return value


def name_of(value: Any) -> str | None:
    """The name that a generator gives the type."""
    return value["$ref"].rsplit("/", 1)[-1] if isinstance(value, dict) and "$ref" in value else None


def operations(document: Document) -> dict[str, tuple[str, str, Document]]:
    return {
        operation["operationId"]: (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


class Comparison:
    def __init__(self, old: Document, new: Document) -> None:
        self.old, self.new = old, new
        self._seen: set[tuple[str, str, str]] = set()

    def breaks(self) -> Iterator[str]:
        before, after = operations(self.old), operations(self.new)
        for name, (method, path, operation) in before.items():
            if name not in after:
                yield f"{name}: the operation is gone, or has another operationId"
                continue
            new_method, new_path, new_operation = after[name]
            if (method, path) != (new_method, new_path):
                yield f"{name}: was {method.upper()} {path}, is {new_method.upper()} {new_path}"
            if operation.get("tags") != new_operation.get("tags"):
                yield f"{name}: other tags; clients are divided by them"
            yield from self._servers(name, operation, new_operation)
            yield from self._security(name, operation, new_operation)
            yield from self._parameters(name, operation, new_operation)
            yield from self._body(name, operation, new_operation)
            yield from self._answers(name, operation, new_operation)

    def _servers(self, name: str, old: Document, new: Document) -> Iterator[str]:
        def listeners(document: Document, operation: Document) -> set[str]:
            servers: list[Document] = operation.get("servers") or document.get("servers") or []
            return {json.dumps([one["url"], one.get("variables")], sort_keys=True) for one in servers}

        if listeners(self.old, old) - listeners(self.new, new):
            yield f"{name}: a server no longer has it"

    def _security(self, name: str, old: Document, new: Document) -> Iterator[str]:
        def alternatives(document: Document, operation: Document) -> set[frozenset[str]]:
            ways: list[Document] = operation["security"] if "security" in operation else document.get("security") or []
            return {frozenset(way) for way in ways} or {frozenset()}

        before, after = alternatives(self.old, old), alternatives(self.new, new)
        for way in before:
            if not any(enough <= way for enough in after):
                yield f"{name}: {' and '.join(sorted(way)) or 'no credential'} is no longer enough"

    def _parameters(self, name: str, old: Document, new: Document) -> Iterator[str]:
        def by_name(document: Document, operation: Document) -> dict[tuple[str, str], Document]:
            found = (resolve(document, one) for one in operation.get("parameters", []))
            return {(one["in"], one["name"]): one for one in found}

        before, after = by_name(self.old, old), by_name(self.new, new)
        for key, parameter in before.items():
            where = f"{name}: parameter {key[1]}"
            if key not in after:
                yield f"{where} is gone"
                continue
            if parameter.get("required", False) != after[key].get("required", False):
                yield f"{where}: required has changed"
            yield from self._schema(where, REQUEST, parameter.get("schema", {}), after[key].get("schema", {}))
        for key, parameter in after.items():
            if key not in before and parameter.get("required", False):
                yield f"{name}: parameter {key[1]} is new and required"

    def _body(self, name: str, old: Document, new: Document) -> Iterator[str]:
        before, after = resolve(self.old, old.get("requestBody")), resolve(self.new, new.get("requestBody"))
        if before is None:
            if after is not None and after.get("required", False):
                yield f"{name}: a body is required now"
            return
        if after is None:
            yield f"{name}: it takes no body any more"
            return
        if before.get("required", False) != after.get("required", False):
            yield f"{name}: body: required has changed"
        yield from self._contents(f"{name}: body", REQUEST, before, after)

    def _answers(self, name: str, old: Document, new: Document) -> Iterator[str]:
        for status, answer in old["responses"].items():
            where = f"{name}: {status}"
            if status not in new["responses"]:
                yield f"{where} is gone"
                continue
            before, after = resolve(self.old, answer), resolve(self.new, new["responses"][status])
            yield from self._contents(where, ANSWER, before, after)
            for header, value in before.get("headers", {}).items():
                found = {key.lower(): one for key, one in after.get("headers", {}).items()}.get(header.lower())
                if found is None:
                    yield f"{where}: header {header} is gone"
                    continue
                was, now = resolve(self.old, value), resolve(self.new, found)
                if was.get("required", False) and not now.get("required", False):
                    yield f"{where}: header {header} may be missing"
                yield from self._schema(
                    f"{where}: header {header}", ANSWER, was.get("schema", {}), now.get("schema", {})
                )
        for status in new["responses"]:
            if status not in old["responses"] and not status.startswith(("4", "5")):
                yield f"{name}: {status} is new"

    def _contents(self, where: str, direction: str, old: Document, new: Document) -> Iterator[str]:
        before, after = old.get("content", {}), new.get("content", {})
        for kind, value in before.items():
            if kind not in after:
                yield f"{where}: {kind} is gone"
                continue
            yield from self._schema(where, direction, value.get("schema", {}), after[kind].get("schema", {}))
        if direction == ANSWER:
            for kind in after:
                if kind not in before:
                    yield f"{where}: {kind} is new"

    def _schema(self, where: str, direction: str, old_value: Any, new_value: Any) -> Iterator[str]:
        before, after = name_of(old_value), name_of(new_value)
        if before != after:
            yield f"{where}: the type was {before or 'without a name'}, is {after or 'without a name'}"
            if before is not None and after is not None:
                return
        if before is not None:
            where = before
            if (before, str(after), direction) in self._seen:
                return
            self._seen.add((before, str(after), direction))
        old, new = resolve(self.old, old_value), resolve(self.new, new_value)
        if not isinstance(old, dict) or not isinstance(new, dict):
            if old != new:
                yield f"{where}: additionalProperties has changed"
            return
        for key in ("type", "format", "uniqueItems"):
            if old.get(key) != new.get(key):
                yield f"{where}: {key} was {old.get(key)}, is {new.get(key)}"
        # Null where there was none is new to who reads it, and null that is no longer taken to who sends it.
        nullable = old.get("nullable", False), new.get("nullable", False)
        if nullable == ((True, False) if direction == REQUEST else (False, True)):
            yield f"{where}: null is {'refused' if direction == REQUEST else 'possible'} now"
        yield from self._values(where, direction, old, new)
        yield from self._limits(where, direction, old, new)
        yield from self._members(where, direction, old, new)
        for key in ("items", "additionalProperties"):
            if key in old or key in new:
                yield from self._schema(f"{where}: {key}", direction, old.get(key, True), new.get(key, True))
        for key in ("allOf", "oneOf", "anyOf"):
            yield from self._variants(where, direction, key, old.get(key, []), new.get(key, []))

    def _values(self, where: str, direction: str, old: Document, new: Document) -> Iterator[str]:
        if "enum" not in old and "enum" not in new:
            return
        if "enum" not in old or "enum" not in new:
            yield f"{where}: it {'is no longer' if 'enum' in old else 'has become'} a closed set"
            return
        for value in old["enum"]:
            if value not in new["enum"]:
                yield f"{where}: the value {value} is gone"
        for value in new["enum"]:
            if value not in old["enum"] and direction == ANSWER:
                yield f"{where}: the value {value} is new in an answer"

    def _limits(self, where: str, direction: str, old: Document, new: Document) -> Iterator[str]:
        """A request must not be limited more, an answer not less: generated types check both."""
        for key, lower_is_narrower in LIMITS.items():
            before, after = old.get(key), new.get(key)
            if before == after:
                continue
            if before is None or after is None:
                narrower = before is None
            else:
                narrower = (after < before) == lower_is_narrower
            if narrower == (direction == REQUEST):
                yield f"{where}: {key} was {before}, is {after}"
        before, after = old.get("pattern"), new.get("pattern")
        if (
            before != after
            and not (direction == REQUEST and after is None)
            and not (direction == ANSWER and before is None)
        ):
            yield f"{where}: pattern was {before}, is {after}"

    def _members(self, where: str, direction: str, old: Document, new: Document) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for member, value in before.items():
            if member not in after:
                yield f"{where}: member {member} is gone"
                continue
            if (member in old.get("required", [])) != (member in new.get("required", [])):
                yield f"{where}: member {member}: required has changed"
            yield from self._schema(f"{where}: member {member}", direction, value, after[member])
        for member in after:
            if member not in before and member in new.get("required", []) and direction == REQUEST:
                yield f"{where}: member {member} is new and required"

    def _variants(self, where: str, direction: str, key: str, old: list[Any], new: list[Any]) -> Iterator[str]:
        before = {name_of(one) or str(index): one for index, one in enumerate(old)}
        after = {name_of(one) or str(index): one for index, one in enumerate(new)}
        for name, value in before.items():
            if name not in after:
                yield f"{where}: {key} without {name}"
            else:
                yield from self._schema(f"{where}: {key} {name}", direction, value, after[name])
        for name in after:
            if name not in before and (direction == ANSWER or key == "allOf"):
                yield f"{where}: {key} has a new {name}"


def version_of(document: Document) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in document["info"]["version"].split("-")[0].split("."))
    return major, minor, patch


def announced(old: Document, new: Document) -> bool:
    """Whether the new version says that clients break."""
    before, after = version_of(old), version_of(new)
    return after[0] > before[0] or (before[0] == 0 and after[0] == 0 and after[1] > before[1])


def main(arguments: list[str]) -> int:
    here = Path(__file__).resolve().parent
    files = [Path(one) for one in arguments] or [here / "released.json", here / "openapi.json"]
    old, new = (json.loads(file.read_bytes()) for file in files)
    if version_of(new) < version_of(old):
        print(f"the version {new['info']['version']} is lower than the released {old['info']['version']}")
        return 1
    found = list(Comparison(old, new).breaks())
    for one in found:
        print(one)
    if not found or announced(old, new):
        print(f"{len(found)} changes break clients of {old['info']['version']}; this is {new['info']['version']}")
        return 0
    print(f"These changes break clients of {old['info']['version']}: undo them, or raise the version in Cargo.toml.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
