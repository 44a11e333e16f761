PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long lint format protos lock model clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## Make the environment (.venv) from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment in $(VENV): about 1 GB with a CPU build of torch, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(INSTALLED)  ## Start a cluster on this machine, serve a mixed batch, write pictures and a timeline to out/
	$(BIN)/python -m tetriserve.demo

test: $(INSTALLED) lint  ## Check style, types and contract, and run the tests
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

test-long: $(INSTALLED)  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m long

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint protos

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED)  ## Generate tetriserve/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. \
		protos/tetriserve/v1/*.proto

model: $(INSTALLED)  ## Train the built-in model from nothing into build/model (hours; QUICK=1: two minutes, no good pictures)
	$(BIN)/python -m model.train --work build/model --out build/model/checkpoint $(if $(QUICK),--quick)

lock:  ## Resolve pyproject.toml anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0 -e '.[dev]'
	build/lock/bin/pip freeze --all --exclude-editable --exclude pip | \
		grep -v -E '^(nvidia|triton|cuda)' | sed -E 's/\+cpu$$//' > requirements.lock

clean:  ## Remove what was made, but not data/ and build/model
	rm -rf $(VENV) out build/lock .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
