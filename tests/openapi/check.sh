#!/usr/bin/env bash
# The checks of the OpenAPI document that need no daemon: validity, linters, compatibility with the last release. And the
# linters of the programs in this directory.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$(tests/install-openapi-tools.sh)
python=$tools/venv/bin/python
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true

"$python" -m openapi_spec_validator openapi/openapi.json
"$tools/node_modules/.bin/redocly" lint --config openapi/redocly.yaml --format stylish openapi/openapi.json
"$tools/node_modules/.bin/spectral" lint --ruleset openapi/spectral.yaml --fail-severity hint openapi/openapi.json
"$python" -m unittest --quiet tests/openapi/compat_test.py
"$python" openapi/compat.py

sources=(openapi/compat.py openapi/clients/python/src tests/openapi)
"$python" -m ruff check --quiet --line-length 120 --extend-select E501,I "${sources[@]}"
"$python" -m ruff format --quiet --diff --line-length 120 "${sources[@]}"
"$python" -m mypy --strict openapi/compat.py tests/openapi/*.py
