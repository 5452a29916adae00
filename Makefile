PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Tests start Python hundreds of times; without .pyc files on disk they take a minute longer.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: help setup ffcv demo test tests test-views test-packs test-train test-slow lint style types gpu-suite clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

$(BIN)/.ready: pyproject.toml constraints.txt
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); $$python tools/check_python.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Compile the kernels once after each change to them, so that no demo or test waits for the compiler.
$(BIN)/.warm: $(BIN)/.ready $(wildcard loaders/kernels/*.py loaders/kernels/*/*.py) loaders/order/permutation.py \
		tools/warm_kernels.py
	$(BIN)/python tools/warm_kernels.py
	touch $@

setup: $(BIN)/.ready $(BIN)/.warm ffcv  ## make .venv, install Sluice with what it needs, compile its kernels

ffcv: $(BIN)/.ready  ## install FFCV where its system libraries can be had; optional
	@tools/install_ffcv.sh $(BIN)/python

demo: setup  ## the whole way on scikit-learn's digits: pack, pre-train, evaluate, report
	$(BIN)/python tools/demo.py

lint: style types  ## style and types

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

tests: setup
	$(PYTEST)

# Check types while the tests run, because the tests leave a sixth of two cores idle.
test: style  ## style, types and the tests
	@$(MAKE) --no-print-directory --jobs 2 types tests

test-views: setup  ## what a change of views or kernels needs
	$(PYTEST) tests/loaders/views tests/loaders/kernels/views tests/loaders/backends/test_decoding.py \
		tests/loaders/test_contract.py tests/tools/test_show_views.py

test-packs: setup  ## what a change of packing needs
	$(PYTEST) tests/loaders/packs tests/loaders/common tests/loaders/kernels/packing tests/loaders/kernels/jpeg \
		tests/corpus/test_layouts.py tests/tools/test_pack_tools.py tests/tools/test_inspect_pack.py

test-train: setup  ## what a change of the loop, an objective or a recipe needs; `make test` has the floors
	$(PYTEST) tests/engine tests/recipes -m 'not slow and not gpu and not peer and not floor'

test-slow: setup  ## the long forms of the tests
	$(BIN)/python -m pytest -m slow --hypothesis-profile default
	$(BIN)/python -m pytest tests/loaders tests/corpus tests/faults/test_fuzz.py --hypothesis-profile default

gpu-suite: setup  ## what a GPU has to prove, in eight minutes; OUT=file.jsonl, SUITE_IMAGES=folder of photographs
	tools/gpu_suite.sh "$(OUT)" "$(OUT).cases.npz" $(BIN)/python

clean:  ## remove what the demo and the tests left
	rm -rf runs/demo packs/digits .pytest_cache .mypy_cache .ruff_cache
