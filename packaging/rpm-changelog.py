#!/usr/bin/env python3
"""Writes the changelog and the packager into an .rpm, in place: cargo-generate-rpm has no option for that.

  rpm-changelog.py RPM CHANGELOG MAINTAINER RELEASE   CHANGELOG in Debian's format, as changelog.sh prints it

The header is rewritten with its digests. The payload is not touched. A signed package is refused: signing comes last.
The format: https://rpm-software-management.github.io/rpm/manual/format.html
"""
import calendar
import email.utils
import hashlib
import os
import re
import struct
import sys

MAGIC = b"\x8e\xad\xe8\x01\0\0\0\0"
LEAD_BYTES = 96
INT32, STRING, BINARY, STRING_ARRAY, I18N = 4, 6, 7, 8, 9
WIDTH = {0: 0, 1: 1, 2: 1, 3: 2, INT32: 4, 5: 8, BINARY: 1}
SIGNATURES, IMMUTABLE = 62, 63  # The regions, each of which covers a whole header.
PACKAGER, CHANGELOG_TIME, CHANGELOG_NAME, CHANGELOG_TEXT = 1015, 1080, 1081, 1082
SHA1, SHA256, SIZE, MD5 = 269, 273, 1000, 1004
KEPT = {1007, 1008}  # The payload's size, and space that signing may use.


def read_header(data, at):
    """Returns the entries without the region, {tag: (type, count, bytes)}, and the end of the header."""
    assert data[at : at + 8] == MAGIC, "not an rpm header"
    entries, size = struct.unpack(">II", data[at + 8 : at + 16])
    store = at + 16 + 16 * entries
    found = {}
    for number in range(entries):
        tag, kind, offset, count = struct.unpack(">IIiI", data[at + 16 + 16 * number : at + 32 + 16 * number])
        if tag in (SIGNATURES, IMMUTABLE):
            continue
        begin = end = store + offset
        if kind in (STRING, STRING_ARRAY, I18N):
            for _ in range(count):
                end = data.index(b"\0", end) + 1
        else:
            end += WIDTH[kind] * count
        found[tag] = (kind, count, data[begin:end])
    return found, store + size


def write_header(entries, region):
    index, store = b"", b""
    for tag, (kind, count, value) in sorted(entries.items()):
        store += b"\0" * (-len(store) % max(WIDTH.get(kind, 1), 1))
        index += struct.pack(">IIiI", tag, kind, len(store), count)
        store += value
    number = len(entries) + 1
    index = struct.pack(">IIiI", region, BINARY, len(store), 16) + index
    store += struct.pack(">IIiI", region, BINARY, -16 * number, 16)
    return MAGIC + struct.pack(">II", number, len(store)) + index + store


def strings(values):
    return (STRING_ARRAY, len(values), b"".join(value.encode() + b"\0" for value in values))


def read_changelog(text, release):
    for entry in re.finditer(r"^\S+ \((.+?)\) .*\n((?:.*\n)*?) -- (.*)  (.*)$", text, re.M):
        version, body, author, date = entry.groups()
        # "  * a bullet", "    its next line" and "  [ a heading ]".
        lines = [re.sub(r"^  \* ", "- ", re.sub(r"^    ", "  ", re.sub(r"^  \[", "[", line))) for line in body.strip("\n").split("\n")]
        # Noon: the same day in most time zones.
        day = calendar.timegm(email.utils.parsedate(date)) // 86400 * 86400 + 43200
        yield day, f"{author} - {version}-{release}", "\n".join(lines)


def main(path, changelog, maintainer, release):
    with open(path, "rb") as file:
        data = file.read()
    signatures, end = read_header(data, LEAD_BYTES)
    begin = end + -end % 8
    entries, payload = read_header(data, begin)
    unknown = set(signatures) - {SHA1, SHA256, SIZE, MD5} - KEPT
    if unknown:
        sys.exit(f"rpm-changelog.py: {path} has the signature tags {sorted(unknown)}: it is signed, or of a newer format")
    with open(changelog, encoding="utf-8") as file:
        times, names, texts = zip(*read_changelog(file.read(), release))
    entries[PACKAGER] = (STRING, 1, maintainer.encode() + b"\0")
    entries[CHANGELOG_TIME] = (INT32, len(times), struct.pack(f">{len(times)}I", *times))
    entries[CHANGELOG_NAME] = strings(names)
    entries[CHANGELOG_TEXT] = strings(texts)
    header = write_header(entries, IMMUTABLE)
    rest = header + data[payload:]
    digests = {
        SHA1: hashlib.sha1(header).hexdigest().encode() + b"\0",
        SHA256: hashlib.sha256(header).hexdigest().encode() + b"\0",
        MD5: hashlib.md5(rest).digest(),
        SIZE: struct.pack(">I", len(rest)),
    }
    for tag in signatures.keys() & digests.keys():
        kind, count, _ = signatures[tag]
        signatures[tag] = (kind, count, digests[tag])
    signature = write_header(signatures, SIGNATURES)
    signature += b"\0" * (-len(signature) % 8)
    with open(path + ".part", "wb") as file:
        file.write(data[:LEAD_BYTES] + signature + rest)
    os.replace(path + ".part", path)


main(*sys.argv[1:])
