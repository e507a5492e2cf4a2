# Every target does its own set-up: a virtual environment at .venv, pinned dependencies, Rust binaries.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
NATIVE_SOURCES := $(shell find native -name '*.rs' -o -name 'Cargo.toml' -o -name 'Cargo.lock' | grep -v native/target)
STAMP := .venv/.installed.stamp
NATIVE_STAMP := .venv/.native.stamp
PEERS_STAMP := .venv/.peers.stamp

.PHONY: setup demo test check nano bench clean

setup: $(STAMP) $(NATIVE_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v cargo >/dev/null || { echo "baleen: cargo not found. It builds the sandbox launcher (native/). Install Rust 1.75 or newer (Debian: apt-get install cargo), then run make again." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "baleen: installing into .venv (once, about a minute)" >&2
	@$(BIN)/python -m pip install -qq --upgrade "pip>=25.1,<27"
	@$(BIN)/python -m pip install -qq --constraint constraints.txt torch
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --group dev hatchling
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --no-build-isolation --editable '.[all]'
	@touch $@

$(NATIVE_STAMP): $(NATIVE_SOURCES) native/hatch_build.py | $(STAMP)
	@$(BIN)/python native/hatch_build.py
	@touch $@

# What tests drive besides this package: other people's clients and harnesses. Missing ones skip.
$(PEERS_STAMP): tests/peers.py | $(STAMP)
	@$(BIN)/python tests/peers.py
	@touch $@

demo: setup
	@$(BIN)/baleen demo

test: setup $(PEERS_STAMP)
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

nano: setup
	$(BIN)/baleen train recipe nano

bench: setup
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf .venv native/target src/baleen/sandbox/bin src/baleen/kernels/lib
