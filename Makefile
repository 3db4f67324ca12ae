# make run     build, and start the daemon in the foreground on the embedded store, state in ./var, on 127.0.0.1
# make test    everything the tests need installed where it is missing, then the packages, then the whole suite
# make test-package  the packages: what is in them, and the life of a machine that one is installed on
# make refusals  the refusal tests AUTHD_REFUSAL_ROUNDS times (default 100), with both cores busy
# make clients clients generated from the OpenAPI document: dist/clients/*.whl and *.tgz, and one in Go that is only compiled;
#              clients-python, clients-typescript and clients-go make one
# make clients-check  their stories and the programs of openapi/README.md against a real daemon
# make openapi-fuzz   Schemathesis against a real daemon; AUTHD_FUZZ_CASES random cases for each operation (default 90)
# make fuzz    every fuzz target for AUTHD_FUZZ_SECONDS (default 600); skipped without nightly and cargo-fuzz
# make torture the mixed load with a kill -9 every six seconds, for ten minutes (AUTHD_TORTURE_SECONDS, AUTHD_TORTURE_SEED)
# make power   power cuts: AUTHD_POWER_STATES disks (default 3000) that they may leave, over AUTHD_POWER_SEEDS runs (default 5);
#              AUTHD_POWER_SEED repeats one, AUTHD_POWER_DAEMON=/path examines another program
# make attack  attacks from one address or with one credential, ten seconds each (AUTHD_ATTACK_SECONDS), and what the fleet
#              notices of them; AUTHD_ATTACK_DAEMON=/path attacks another program, AUTHD_ATTACK_ONLY="store flood" makes one
# make package dist/*.deb and dist/*.rpm; ARCH=arm64 for another architecture, AUTHD_MAINTAINER and AUTHD_HOMEPAGE for a release
# make cdx     the native cdx, static, as target/cdx/cdx-x86_64-linux; TARGET=TRIPLE for another machine (docs/OPERATIONS.md)
# make clients-rust  the generated part of the Rust client, from openapi/openapi.json; make clients-rust-check compares it
# make repo    a signed repository of them in repo/, for apt and dnf (AUTHD_REPO_KEY, AUTHD_REPO_URL; packaging/RELEASING.md)
# make reproducible  both built twice, in two directories, and compared (half an hour)
# make bench   the benchmarks, each beside its baseline, a table at the end

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# AUTHD_REQUIRE_ALL=1 turns each check that would be skipped into a failure.

# Big downloads of the tests, outside the clone.
export AUTHD_TEST_CACHE ?= $(HOME)/.cache/codex-authd-tests

.PHONY: run build release cdx test prepare needs lint unit package repo test-package reproducible torture power attack bench fuzz refusals
.PHONY: openapi openapi-fuzz clients clients-rust clients-rust-check clients-python clients-typescript clients-go clients-check

run:
	cargo build --profile checkout --locked
	@exec ./tests/run-local.sh target/checkout/codex-authd

build:
	cargo build --locked --workspace

# Without any path of this machine in it.
release:
	./packaging/build.sh

cdx:
	./packaging/cdx.sh

# Never edited by hand.
clients-rust:
	cargo run --quiet --locked --manifest-path openapi/clients/generate/Cargo.toml

# And the crate can be published.
clients-rust-check:
	cargo run --quiet --locked --manifest-path openapi/clients/generate/Cargo.toml -- --check
	cargo package --quiet --locked --package codex-authd-client --allow-dirty

# The suite last: what is printed last is its summary.
test: prepare lint openapi clients-rust-check clients-check openapi-fuzz test-package unit

# The first build needs only a C compiler: it runs while the rest is downloaded and installed.
prepare:
	@mkdir -p target; build=; \
	if command -v cc >/dev/null; then cargo build --locked --workspace --all-targets >target/first-build.log 2>&1 & build=$$!; fi; \
	./tests/needs.sh; \
	if [ -n "$$build" ] && ! wait "$$build"; then cat target/first-build.log; exit 1; fi

# What Debian, npm and PyPI bring; nothing is touched that is there already.
needs:
	@./tests/needs.sh

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --lib rooms::
	shellcheck wrapper/cdx wrapper/install.sh wrapper/start.sh tests/*.sh tests/openapi/*.sh openapi/clients/*.sh packaging/*.sh benches/*.sh fuzz/*.sh .ci/run
	. tests/skip.sh; export PATH="$(AUTHD_TEST_CACHE)/tools/bin:$(AUTHD_TEST_CACHE)/prometheus/usr/bin:$$PATH"; \
	if command -v promtool >/dev/null; then promtool check rules packaging/prometheus/*.yml; \
	else skipped "promtool is not there (tests/needs.sh unpacks it)"; fi; \
	if command -v cargo-deny >/dev/null; then cargo deny --locked --workspace check licenses bans sources; \
	else skipped "cargo deny is not installed (tests/needs.sh installs it)"; fi

# The document that is checked in is the one the daemon serves.
openapi: build
	diff -u openapi/openapi.json <(target/debug/codex-authd openapi) \
	  || { echo "openapi/openapi.json differs: target/debug/codex-authd openapi > openapi/openapi.json"; exit 1; }
	./tests/openapi/check.sh

# Generated from it; the daemon is not needed.
clients: clients-python clients-typescript clients-go

clients-python clients-typescript clients-go:
	./openapi/clients/build.sh $(@:clients-%=%)

# With the packed clients.
clients-check: build clients
	"$$(./tests/install-openapi-tools.sh)/venv/bin/python" tests/openapi/stories.py
	"$$(./tests/install-openapi-tools.sh)/venv/bin/python" tests/openapi/stories_rust.py
	"$$(./tests/install-openapi-tools.sh)/venv/bin/python" tests/openapi/readme.py

openapi-fuzz: build
	"$$(./tests/install-openapi-tools.sh)/venv/bin/python" tests/openapi/fuzz.py

# Without the life of a machine: that needs the packages, and is a part of test-package.
unit: build
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --workspace -E 'not test(/^appliance::/)'; \
	else cargo test --locked --workspace -- --skip appliance::; fi

# The manual pages come from a program that runs here.
package: export ARCH ?= $(shell dpkg --print-architecture)
# With the native cdx for this machine; those that `make cdx TARGET=…` has left in target/cdx are packed as well.
package: release $(if $(filter-out $(shell dpkg --print-architecture),$(ARCH)),build,cdx)
	./packaging/package.sh

# Of what make package has left in dist/.
repo:
	./packaging/repo.sh

# The first is skipped, with the reason, where no container can be booted; it makes the Debians that both install on. One machine
# at a time: each measures its memory and its start.
test-package: export AUTHD_TEST_PACKAGES = $(CURDIR)/dist
test-package: package
	cargo test --locked --test integration -- --nocapture --test-threads 1 appliance
	./tests/package.sh
	./tests/repo.sh

reproducible:
	./packaging/reproducible.sh

torture: export AUTHD_TORTURE_SECONDS ?= 600
torture: build
	cargo test --locked --test integration -- --nocapture torture

power: export AUTHD_POWER_DAEMON ?= $(CURDIR)/target/release/codex-authd
power: release
	cargo test --locked --test integration -- --nocapture --ignored power::many_states

attack: build
	cargo test --locked --test integration -- --nocapture --ignored attacks::

refusals: build
	./tests/refusals.sh

bench:
	./benches/run.sh

fuzz:
	./fuzz/run.sh
