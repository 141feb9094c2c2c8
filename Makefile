# Everything runs in .venv/, made on first use and made anew when the pins or requirements change.
# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread per worker: more would fight over the cores. Nothing is downloaded by a test.
PYTEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST_ARGS ?= -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types layers format bench figures clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv/ with foretoken and the development tools

$(READY): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foretoken needs Python 3.11 or newer as '$(PYTHON)'; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { echo "Creating $(VENV)/"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing foretoken and its requirements into $(VENV)/ (once; a few minutes, mostly download)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-dev.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## run the main job on the bundled model and real text (minutes, no network)
	@$(BIN)/foretoken demo

test: lint types layers ## lint, types, layers, then the tests
	@$(PYTEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY) ## check style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run 'make format'" >&2; exit 1; }

types: $(READY) ## check types
	@$(BIN)/mypy

layers: $(READY) ## check that modules import only from the layers below them
	@$(BIN)/lint-imports --no-logo

format: $(READY) ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: $(READY) ## run benchmarks/*.py, which write result files to results/ (long)
	@set -e; for script in benchmarks/[!_]*.py; do echo "$$script"; $(BIN)/python "$$script"; done

figures: $(READY) ## fill the figures of README and docs from results/
	@$(BIN)/python docs/fill_figures.py

clean: ## remove caches and build output; .venv/ stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
