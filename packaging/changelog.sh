#!/usr/bin/env bash
# CHANGELOG.md (standard input) as a Debian changelog: one entry for each "## VERSION", its bullets without their markup.
#   changelog.sh VERSION DATE MAINTAINER   what "Unreleased" is called, and when it is from
set -euo pipefail
awk -v version="$1" -v date="$2" -v maintainer="$3" '
  # Lines of at most 80 characters: a bullet, and its further lines below the text of the first.
  function put(    count, words, i, line, indent) {
    if (text == "") return
    gsub(/[`*]/, "", text)
    count = split(text, words, / +/)
    line = first; indent = "    "
    for (i = 1; i <= count; i++) {
      if (length(line) + length(words[i]) > 78) { print line; line = indent words[i] }
      else line = line (line ~ / $/ ? "" : " ") words[i]
    }
    print line
    text = ""
  }
  function finish() { put(); if (open) printf "\n -- %s  %s\n", maintainer, date; open = 0 }
  /^## / {
    finish()
    printf "%scodex-authd (%s) unstable; urgency=medium\n\n", (seen++ ? "\n" : ""), ($2 == "Unreleased" ? version : $2)
    open = 1
    next
  }
  !open { next }
  /^- / { put(); first = "  * "; text = substr($0, 3); next }
  /^  / { text = text " " $0; sub(/ +$/, "", text); next }
  /^[A-Za-z]/ { put(); first = "  "; sub(/:$/, ""); text = "[ " $0 " ]"; next }
  END { finish() }
'
