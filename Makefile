# What a person types.  Each target prepares the machine first (scripts/setup does nothing where nothing is missing).
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs bench fuzz security chaos lock clean
BIN := .venv/bin
JOBS ?= 1
SEED ?= 1

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1 \t/' | expand -t 20

setup:  ## Debian packages, Python environment, libvirt; leaves the command at .venv/bin/ironcd
	@scripts/setup

demo: setup  ## a whole job on a real virtual machine, against a simulated GitHub (JOBS=5 for five)
	@$(BIN)/ironcd demo --jobs $(JOBS)

test: setup  ## lint, types, import contracts, and all tests up to a real virtual machine
	@scripts/test

lint: setup  ## ruff and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup  ## mypy, strict
	@$(BIN)/mypy

docs: setup  ## the generated pages in docs/reference/
	@$(BIN)/python -m orchestrator.surface.reference

bench: setup  ## each figure beside a peer's or a limit; writes build/bench.json
	@$(BIN)/python -m bench

fuzz: setup  ## 300,000 hellos: our reader beside OpenSSL's server and mitmproxy's parser (some minutes)
	@$(BIN)/python -m tests.security.fuzz_hello

security: setup  ## the attacks on the egress wall; writes build/security.json
	@$(BIN)/pytest tests/security --security-json build/security.json

chaos: JOBS =
chaos: setup  ## 200 jobs under random faults and kills, some of them on real machines (JOBS=n SEED=n; one kind alone: CROWD=n, REAL=n or VMS=n); writes build/chaos.json
	@$(BIN)/python -m tests.chaos $(if $(JOBS),--jobs $(JOBS)) $(if $(CROWD),--crowd $(CROWD)) $(if $(REAL),--real $(REAL)) \
		$(if $(VMS),--vms $(VMS)) $(if $(PLAN),--plan) --seed $(SEED) --output build/chaos.json

lock:  ## requirements.lock anew from pyproject.toml, with hashes and without addresses (needs uv)
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header \
		--group dev --output-file requirements.lock pyproject.toml

clean:  ## what was built here; not the image cache
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
