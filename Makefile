# make demo    environment, then the whole pipeline on the embedded data
# make test    environment, lint, types, tests: test-local in two processes, then test-ray, which takes all cores
# make test-all adds tests of more than half a minute each, benchmarks, kills, every kind of student, and test-cluster
# make test-cluster Ray jobs on a cluster of three nodes with a store and MLflow on PostgreSQL, through faults
# make test-fast leaves out what starts Ray

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-fast test-local test-ray test-cluster lint types install clean

install: $(VENV)/.installed

# torch first, on its own: its range resolves to a CPU build where the index at hand has one.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and f'Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; set PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.9,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/ensemble-kd run jobs/recipes/digits.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# A file's tests stay together, in their order: they share fixtures.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

test: lint types test-local test-ray

test-local: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not ray and not long and not cluster"

test-ray: install
	$(BIN)/python -m pytest -m "ray and not long and not cluster"

test-all: lint types
	$(BIN)/python -m pytest

test-fast: lint types
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not long and not cluster"

test-cluster: install
	$(BIN)/python -m pytest -m "cluster and not long"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
