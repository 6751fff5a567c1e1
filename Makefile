# `make quickstart` and `make test` set everything up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Honoured for those who want a particular build of torch, e.g. a CPU or a CUDA wheel index.
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL),)

.PHONY: setup quickstart test lint bench-peers clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(TORCH_INDEX) torch
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@

quickstart: setup
	$(BIN)/sae-diff quickstart $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --config setup.cfg

# Peers that cannot share our environment; the package of dictionary_learning asks for more than its trainer needs.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers.txt constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q $(TORCH_INDEX) $$(grep '^torch==' constraints.txt)
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q -r benchmarks/peers.txt
	.venv-peers/bin/python -m pip --disable-pip-version-check install -q --no-deps dictionary-learning==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .venv-peers runs build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
