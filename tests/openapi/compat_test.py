"""openapi/compat.py sees each kind of change that breaks a generated client, and no other."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "openapi"))
import compat

Document = dict[str, Any]
Change = Callable[[Document], object]

THING = {
    "type": "object",
    "required": ["id", "state", "size"],
    "properties": {
        "id": {"type": "integer", "format": "int64", "minimum": 0},
        "state": {"$ref": "#/components/schemas/State"},
        "size": {"type": "integer", "format": "int64", "maximum": 100},
        "note": {"type": "string", "maxLength": 10},
        "tags": {"type": "array", "maxItems": 5, "items": {"type": "string"}},
        "more": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
BASE: Document = {
    "openapi": "3.0.0",
    "info": {"title": "t", "version": "0.1.0"},
    "servers": [{"url": "https://one"}, {"url": "https://two"}],
    "paths": {
        "/things/{id}": {
            "post": {
                "operationId": "storeThing",
                "tags": ["Things"],
                "security": [{"Key": []}, {"Token": []}],
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "format": "int64"}},
                    {"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 100}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
                },
                "responses": {
                    "200": {
                        "description": "Done.",
                        "headers": {"ETag": {"required": True, "schema": {"type": "string"}}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}},
                    },
                    "404": {"description": "Gone."},
                },
            }
        },
        "/health": {
            "get": {
                "operationId": "getHealth",
                "tags": ["Health"],
                "security": [],
                "responses": {"200": {"description": "Well."}},
            }
        },
    },
    "components": {
        "schemas": {
            "State": {"type": "string", "enum": ["active", "removed"]},
            "Thing": THING,
            "Request": {"oneOf": [{"$ref": "#/components/schemas/Make"}, {"$ref": "#/components/schemas/Drop"}]},
            "Make": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "maxLength": 10},
                    "kind": {"$ref": "#/components/schemas/Kind"},
                    "note": {"type": "string", "nullable": True},
                },
            },
            "Kind": {"type": "string", "enum": ["large", "small"]},
            "Drop": {"type": "object", "properties": {"force": {"type": "boolean"}}},
        }
    },
}


def operation(document: Document) -> Document:
    found: Document = document["paths"]["/things/{id}"]["post"]
    return found


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def member(document: Document, name: str, member_name: str) -> Document:
    found: Document = schema(document, name)["properties"][member_name]
    return found


BREAKS: dict[str, tuple[Change, str]] = {
    "an operation is removed": (lambda d: d["paths"].pop("/health"), "getHealth: the operation is gone"),
    "an operationId changes": (
        lambda d: operation(d).update(operationId="putThing"),
        "storeThing: the operation is gone",
    ),
    "a path changes": (lambda d: d["paths"].update({"/healthz": d["paths"].pop("/health")}), "is GET /healthz"),
    "a method changes": (
        lambda d: d["paths"]["/things/{id}"].update(put=d["paths"]["/things/{id}"].pop("post")),
        "is PUT",
    ),
    "a tag changes": (lambda d: operation(d).update(tags=["Other"]), "other tags"),
    "a server is left": (lambda d: operation(d).update(servers=[{"url": "https://one"}]), "a server no longer has it"),
    "a credential is refused": (lambda d: operation(d).update(security=[{"Key": []}]), "Token is no longer enough"),
    "a second credential is needed": (
        lambda d: operation(d).update(security=[{"Key": [], "Token": []}]),
        "Key is no longer enough",
    ),
    "a credential is needed": (
        lambda d: d["paths"]["/health"]["get"].update(security=[{"Key": []}]),
        "no credential is no longer enough",
    ),
    "a parameter is removed": (lambda d: operation(d)["parameters"].pop(), "parameter limit is gone"),
    "a parameter moves": (lambda d: operation(d)["parameters"][1].update({"in": "header"}), "parameter limit is gone"),
    "a parameter becomes required": (
        lambda d: operation(d)["parameters"][1].update(required=True),
        "parameter limit: required has changed",
    ),
    "a required parameter is new": (
        lambda d: operation(d)["parameters"].append({"name": "x", "in": "query", "required": True, "schema": {}}),
        "parameter x is new and required",
    ),
    "a parameter's type changes": (
        lambda d: operation(d)["parameters"][1]["schema"].update(type="string"),
        "parameter limit: type was integer, is string",
    ),
    "a parameter is limited more": (
        lambda d: operation(d)["parameters"][1]["schema"].update(maximum=50),
        "maximum was 100, is 50",
    ),
    "a body is no longer taken": (lambda d: operation(d).pop("requestBody"), "it takes no body any more"),
    "a body is required": (
        lambda d: d["paths"]["/health"]["get"].update(requestBody={"required": True, "content": {}}),
        "a body is required now",
    ),
    "a body's content type changes": (
        lambda d: operation(d)["requestBody"].update(content={"text/plain": {}}),
        "body: application/json is gone",
    ),
    "a required member of a request is new": (
        lambda d: (
            schema(d, "Make")["required"].append("extra"),
            schema(d, "Make")["properties"].update(extra={"type": "string"}),
        ),
        "member extra is new and required",
    ),
    "a member of a request is removed": (lambda d: schema(d, "Make")["properties"].pop("note"), "member note is gone"),
    "a member of a request becomes required": (
        lambda d: schema(d, "Make")["required"].append("note"),
        "member note: required has changed",
    ),
    "a member of a request may not be null": (
        lambda d: member(d, "Make", "note").pop("nullable"),
        "null is refused now",
    ),
    "a request is limited more": (lambda d: member(d, "Make", "name").update(maxLength=5), "maxLength was 10, is 5"),
    "a request is limited newly": (lambda d: member(d, "Make", "name").update(minLength=5), "minLength was None, is 5"),
    "a request gets a pattern": (lambda d: member(d, "Make", "name").update(pattern="a"), "pattern was None, is a"),
    "a value of a request is removed": (
        lambda d: schema(d, "Kind")["enum"].remove("small"),
        "Kind: the value small is gone",
    ),
    "a kind of request is removed": (lambda d: schema(d, "Request")["oneOf"].pop(), "oneOf without Drop"),
    "a status is removed": (lambda d: operation(d)["responses"].pop("404"), "404 is gone"),
    "a good status is new": (lambda d: operation(d)["responses"].update({"202": {"description": ""}}), "202 is new"),
    "an answer's content type is new": (
        lambda d: operation(d)["responses"]["200"]["content"].update({"text/plain": {}}),
        "text/plain is new",
    ),
    "a header is removed": (lambda d: operation(d)["responses"]["200"].pop("headers"), "header ETag is gone"),
    "a header may be missing": (
        lambda d: operation(d)["responses"]["200"]["headers"]["ETag"].update(required=False),
        "header ETag may be missing",
    ),
    "a member of an answer is removed": (lambda d: schema(d, "Thing")["properties"].pop("note"), "member note is gone"),
    "a member of an answer may be missing": (
        lambda d: schema(d, "Thing")["required"].remove("size"),
        "member size: required has changed",
    ),
    "a member of an answer is always there": (
        lambda d: schema(d, "Thing")["required"].append("note"),
        "member note: required has changed",
    ),
    "a member of an answer may be null": (
        lambda d: member(d, "Thing", "note").update(nullable=True),
        "null is possible now",
    ),
    "a member's type changes": (
        lambda d: member(d, "Thing", "note").update(type="boolean"),
        "type was string, is boolean",
    ),
    "a member's format changes": (
        lambda d: member(d, "Thing", "id").update(format="int32"),
        "format was int64, is int32",
    ),
    "an array's items change": (
        lambda d: member(d, "Thing", "tags")["items"].update(type="integer"),
        "items: type was string, is integer",
    ),
    "a map's values change": (
        lambda d: member(d, "Thing", "more")["additionalProperties"].update(type="integer"),
        "additionalProperties: type was string, is integer",
    ),
    "an answer is limited less": (lambda d: member(d, "Thing", "size").update(maximum=200), "maximum was 100, is 200"),
    "a limit of an answer is dropped": (
        lambda d: member(d, "Thing", "note").pop("maxLength"),
        "maxLength was 10, is None",
    ),
    "a value is new in an answer": (
        lambda d: schema(d, "State")["enum"].append("lost"),
        "the value lost is new in an answer",
    ),
    "a value of an answer is removed": (
        lambda d: schema(d, "State")["enum"].remove("removed"),
        "the value removed is gone",
    ),
    "a closed set opens": (lambda d: schema(d, "State").pop("enum"), "is no longer a closed set"),
    "a string becomes a closed set": (
        lambda d: member(d, "Thing", "note").update(enum=["a"]),
        "has become a closed set",
    ),
    "a type is renamed": (
        lambda d: (
            d["components"]["schemas"].update(Condition=schema(d, "State")),
            member(d, "Thing", "state").update({"$ref": "#/components/schemas/Condition"}),
        ),
        "the type was State, is Condition",
    ),
    "a type loses its name": (
        lambda d: schema(d, "Thing")["properties"].update(state=schema(d, "State")),
        "the type was State, is without a name",
    ),
}

HARMLESS: dict[str, Change] = {
    "nothing": lambda d: None,
    "an operation is new": lambda d: d["paths"].update(
        {"/new": {"get": d["paths"]["/health"]["get"] | {"operationId": "new"}}}
    ),
    "a parameter that may be missing is new": lambda d: operation(d)["parameters"].append(
        {"name": "x", "in": "query", "schema": {}}
    ),
    "a member of a request that may be missing is new": lambda d: schema(d, "Make")["properties"].update(
        x={"type": "string"}
    ),
    "a member of an answer is new": lambda d: schema(d, "Thing")["properties"].update(x={"type": "string"}),
    "an error status is new": lambda d: operation(d)["responses"].update({"409": {"description": "Conflict."}}),
    "a value of a request is new": lambda d: schema(d, "Kind")["enum"].append("huge"),
    "a kind of request is new": lambda d: schema(d, "Request")["oneOf"].append({"$ref": "#/components/schemas/State"}),
    "a request is limited less": lambda d: member(d, "Make", "name").update(maxLength=20),
    "an answer is limited more": lambda d: member(d, "Thing", "size").update(maximum=50),
    "a member of a request may be null": lambda d: member(d, "Make", "name").update(nullable=True),
    "another credential is taken as well": lambda d: operation(d)["security"].append({"Other": []}),
    "a description changes": lambda d: operation(d).update(description="Other words."),
    "a header's name is spelled in another case": lambda d: operation(d)["responses"]["200"].update(
        headers={"etag": operation(d)["responses"]["200"]["headers"]["ETag"]}
    ),
}


def changed(change: Change) -> Document:
    document = copy.deepcopy(BASE)
    change(document)
    return document


def exit_code(old: Document, new: Document) -> int:
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / "old.json", Path(directory) / "new.json"]
        for file, document in zip(files, (old, new), strict=True):
            file.write_text(json.dumps(document))
        program = REPOSITORY / "openapi/compat.py"
        return subprocess.run([sys.executable, program, *files], check=False, stdout=subprocess.DEVNULL).returncode


class Compat(unittest.TestCase):
    def test_each_break_is_seen(self) -> None:
        for name, (change, words) in BREAKS.items():
            with self.subTest(name):
                found = list(compat.Comparison(BASE, changed(change)).breaks())
                self.assertTrue(any(words in one for one in found), f"{words!r} is not in {found}")

    def test_other_changes_are_free(self) -> None:
        for name, change in HARMLESS.items():
            with self.subTest(name):
                self.assertEqual(list(compat.Comparison(BASE, changed(change)).breaks()), [])

    def test_only_a_higher_version_permits_a_break(self) -> None:
        broken = changed(lambda d: d["paths"].pop("/health"))
        for released, version, code in [
            ("0.1.0", "0.1.0", 1),
            ("0.1.0", "0.1.9", 1),
            ("0.1.0", "0.2.0", 0),
            ("0.1.0", "1.0.0", 0),
            ("1.4.0", "1.5.0", 1),
            ("1.4.0", "2.0.0", 0),
        ]:
            with self.subTest(f"{released} to {version}"):
                old, new = copy.deepcopy(BASE), copy.deepcopy(broken)
                old["info"]["version"], new["info"]["version"] = released, version
                self.assertEqual(exit_code(old, new), code)

    def test_a_version_never_goes_back(self) -> None:
        old, new = copy.deepcopy(BASE), copy.deepcopy(BASE)
        old["info"]["version"] = "0.2.0"
        self.assertEqual(exit_code(old, new), 1)
        self.assertEqual(exit_code(old, old), 0)


if __name__ == "__main__":
    unittest.main()
