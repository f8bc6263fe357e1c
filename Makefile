# What can be done here; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage lint docs setup clean bench-enqueue

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

setup: $(VENV)/.ready  ## make the virtual environment with everything in it

demo: setup  ## run the main job end to end on a few images, on this machine
	@$(BIN)/pip show -q scikit-image 2>/dev/null || $(BIN)/pip install -q --no-deps -c constraints.txt scikit-image
	@$(BIN)/python -m tools.demo

test: setup lint  ## check style and types, run the tests but the longest
	$(BIN)/python -m pytest -m "not slow"

test-all: setup lint  ## the longest, too (they are marked slow)
	$(BIN)/python -m pytest

coverage: setup  ## run the tests and print what of the code they reach
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## write docs/settings.md and docs/cli.md from the code
	$(BIN)/python -m tools.reference

bench-enqueue: setup  ## pairs per second that the producer publishes, alongside a plain apply_async loop
	$(BIN)/python -m benchmarks.enqueue

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo/output

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.11 ...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing (Debian: python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	@touch $@
