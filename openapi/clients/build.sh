#!/usr/bin/env bash
# Generates clients from openapi/openapi.json, checks their types, and packs them into dist/clients.
#   build.sh python|typescript|go …
# The generated code is not checked in: the generators are pinned, so the same document gives the same code.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD
document=$repository/openapi/openapi.json
tools=$(tests/install-openapi-tools.sh)
python=$tools/venv/bin/python
dist=$repository/dist/clients
version=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["info"]["version"])' "$document")
# The same bytes every time.
export SOURCE_DATE_EPOCH=1700000000

# A fresh copy of openapi/clients/$1 in $work, with the licence.
begin() {
  work=$dist/build/$1
  rm -rf "$work"
  mkdir -p "$dist/build"
  cp -r "openapi/clients/$1" "$work"
  cp LICENSE "$work"
}

build_python() {
  begin python
  sed -i "s/^version = \"0\"$/version = \"$version\"/" "$work/pyproject.toml"
  local log=$dist/build/python.log
  (cd "$work" && "$python" -m openapi_python_client generate --path "$document" --config generator.yaml --meta none \
    --output-path src/codex_authd_client/generated --fail-on-warning) >"$log" 2>&1 || { cat "$log"; return 1; }
  (cd "$work" && "$python" -m mypy src)
  rm -f "$dist"/*.whl
  (cd "$work" && "$python" -m hatchling build --target wheel --directory "$dist" >/dev/null)
}

build_typescript() {
  begin typescript
  ln -s "$tools/node_modules" "$work/node_modules"
  (
    cd "$work"
    sed -i "s/\"version\": \"0.0.0\"/\"version\": \"$version\"/" package.json
    # A member of a request with a default value may be left out.
    node_modules/.bin/openapi-typescript "$document" --default-non-nullable=false --output src/schema.ts >/dev/null 2>&1
    node_modules/.bin/tsc --project .
    rm -f "$dist"/*.tgz
    npm pack --ignore-scripts --silent --pack-destination "$dist" >/dev/null
  )
}

build_go() {
  begin go
  local log=$dist/build/go.log jar
  jar=$("$python" -c 'import openapi_generator_cli, pathlib; print(pathlib.Path(openapi_generator_cli.__file__).parent)')
  # As a package below GOPATH: with modules, the compiler would want to download what Debian has.
  local source=$work/gopath/src/authd
  java -jar "$jar/openapi-generator.jar" generate --input-spec "$document" --config "$work/generator.yaml" \
    --output "$source" >"$log" 2>&1 || { cat "$log"; return 1; }
  (cd "$source" && env -u GOFLAGS GO111MODULE=off GOPATH="$work/gopath:/usr/share/gocode" GOCACHE="$dist/build/go-cache" go build .)
}

for language; do
  "build_$language"
  echo "clients: $language is built"
done
find "$dist" -maxdepth 1 -type f -printf '%P\n' | sort
