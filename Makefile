# `make help` lists the targets. Settings, each overridable: make test PYTHON=python3.12 JOBS=4
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Another Python gets another environment: .venv for python3, .venv-python3.12 for python3.12.
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
# Another torch than the pinned one. On Linux, PyPI's torch brings CUDA libraries of several GB; a machine without a GPU
# does better with PyTorch's CPU wheels: make demo TORCH=torch==2.13.0+cpu PIP_ARGS="--extra-index-url <PyTorch's CPU index>"
TORCH ?=
PIP_ARGS ?=
PRESET ?= smoke
# `make demo TUNE=1` searches for a noise schedule first.
TUNE ?=
# Test processes. Tests that share a Ray cluster all run in one of them, so the others are free for the rest.
JOBS ?= 2
PYTEST_ARGS ?=

# One BLAS thread a process: several processes that each take every core are slower than one, and less repeatable.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

bin := $(VENV)/bin
say = printf '\n== %s\n'

.PHONY: help demo test check format-check lint types contracts pytest golden bench constraints bootstrap format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: bootstrap ## from text to report: every method trained, sampled, scored, compared
	@$(bin)/python -m jobs.experiment --preset $(PRESET) $(if $(TUNE),--tune)

test: check pytest ## format, lint, types, import contracts and the test suite

check: format-check lint types contracts ## all of test but the test suite

format-check: bootstrap
	@$(say) "format (make format mends it)"
	@$(bin)/ruff format --check --quiet --diff .

lint: bootstrap
	@$(say) "lint"
	@$(bin)/ruff check --quiet .

types: bootstrap
	@$(say) "types"
	@$(bin)/pyright --pythonpath $(bin)/python

contracts: bootstrap
	@$(say) "import contracts"
	@$(bin)/lint-imports --no-logo

pytest: bootstrap
	@$(say) "tests"
	@$(bin)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

golden: bootstrap ## write tests/golden anew; read the diff before you commit it
	@$(bin)/python -m pytest tests/test_golden.py --regenerate-golden
	@git --no-pager diff --stat -- tests/golden

bench: bootstrap ## every benchmark, each against its named alternative in the same run
	@for script in tests/benchmarks/*.py; do $(say) "$$script"; $(bin)/python "$$script"; done

format: bootstrap ## apply the formatter and the linter's safe fixes
	@$(bin)/ruff format --quiet .
	@$(bin)/ruff check --quiet --fix .

constraints: bootstrap ## write infra/constraints.txt from the environment as it is
	@$(bin)/python infra/pin.py

bootstrap:
	@$(PYTHON) infra/bootstrap.py --venv $(VENV) --torch "$(TORCH)" --pip-args="$(PIP_ARGS)"

clean: ## remove caches; environments and runs stay
	@rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
