# `make quickstart` and `make test` set everything up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Honoured for those who want a particular build of torch, e.g. a CPU or a CUDA wheel index.
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL),)

.PHONY: setup quickstart test lint clean

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

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
