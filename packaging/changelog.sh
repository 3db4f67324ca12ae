#!/usr/bin/env bash
# Converts CHANGELOG.md (standard input) to a Debian changelog: one entry for each "## VERSION (YYYY-MM-DD)", with its
# bullets without markup. The newest entry is the packaged version; before its release, its heading is
# "## Unreleased".
#   changelog.sh VERSION DATE MAINTAINER   DATE: for entries without a date
set -euo pipefail
awk -v version="$1" -v date="$2" -v maintainer="$3" '
  # Wraps a bullet into lines of at most 80 characters, indented below its text.
  function put(    count, words, i, line, indent) {
    if (text == "") return
    gsub(/[`*]/, "", text)
    count = split(text, words, / +/)
    line = first; indent = "    "
    for (i = 1; i <= count; i++) {
      if (length(line) + length(words[i]) > 78) { body = body line "\n"; line = indent words[i] }
      else line = line (line ~ / $/ ? "" : " ") words[i]
    }
    body = body line "\n"
    text = ""
  }
  function entry(name, when, lines) {
    printf "%scodex-authd (%s) unstable; urgency=medium\n\n%s\n -- %s  %s\n", (seen++ ? "\n" : ""), name, lines, maintainer, when
  }
  function finish() {
    put()
    if (body != "") {
      # A build between two releases for which CHANGELOG.md has no entry.
      if (!seen && open != version) entry(version, date, "  * A build from git; no change is listed.\n")
      entry(open, opened, body)
    }
    open = body = ""
  }
  function as_date(day,    command, line) {
    if (day !~ /^\([0-9]+-[0-9]+-[0-9]+\)$/) return date
    command = "TZ=UTC LC_ALL=C date --rfc-email --date=" substr(day, 2, length(day) - 2)
    command | getline line
    close(command)
    return line
  }
  /^## / { finish(); open = ($2 == "Unreleased" ? version : $2); opened = as_date($3); next }
  open == "" { next }
  /^- / { put(); first = "  * "; text = substr($0, 3); next }
  /^  / { text = text " " $0; sub(/ +$/, "", text); next }
  /^### / { put(); first = "  "; text = "[ " substr($0, 5) " ]"; next }
  /^[A-Za-z]/ { put(); first = "  "; sub(/:$/, ""); text = "[ " $0 " ]"; next }
  END { finish() }
'
