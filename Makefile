# Every target does its own set-up: nothing but Python 3.11 or newer and make has to be there.
#
#   make demo                    install, pull the default model, run it with and without drafting
#   make test                    install, lint, check types, pull the default model, run the tests
#   make test ARGS="-k cache"    the same with a part of the tests
#
# PIP_ARGS is handed to every pip install (an index of CPU builds, say).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV     ?= .venv
MODEL    ?= smollm2-135m
PROMPT   ?= examples/demo_prompt.txt
ARGS     ?=
PIP_ARGS ?=
# One process per core, four at most, and one thread each: faster here than threads inside one process.
PYTEST_ARGS ?= -n auto --maxprocesses=4 --dist=worksteal --cov=outrider --cov-report=term

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# The first interpreter that really runs, is new enough, and can make an environment with pip in it.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "creating $(VENV) with $$("$$python" --version) ($$python)"; \
	        "$$python" -m venv --clear $(VENV); exit 0; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module was found." >&2; \
	echo "Install one (on Debian or Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

# Stamps, so that an install happens only when what it depends on has changed.
$(VENV)/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed-run

.PHONY: demo
demo: $(VENV)/.installed-run  ## install, pull the default model, compare drafting with plain decoding
	$(BIN)/outrider pull $(MODEL)
	$(BIN)/outrider run --compare --max-tokens 400 --model $(MODEL) "$$(cat $(PROMPT))"

.PHONY: test
test: lint  ## install, lint, check types, run the tests with coverage (ARGS="-k foo" for a part)
	$(BIN)/outrider pull $(MODEL) || echo "No $(MODEL): the tests on a real model will be skipped." >&2
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS) $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev  ## install, check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: wheel
wheel: $(VENV)/.installed-dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

.PHONY: clean
clean:  ## remove the environment, builds and caches (pulled models stay)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
