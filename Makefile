# Needs Python 3.11+ and make; everything else is fetched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of the tests of the whole stack the one that has a small stack of its own.
ALONE := tests/e2e/test_add_source.py
export DETACH

.PHONY: demo down test lint install bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Headrace needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -P -m cli.compile
	@touch $@

demo: install  ## start everything and stream; DETACH=1 returns when the first KPI is live
	@$(BIN)/headrace demo up $(if $(DETACH),--detach)

down: install  ## stop the demo and remove its state
	@$(BIN)/headrace down --purge --yes

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything: style, types, layers, unit, property, integration, end to end
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ALONE) tests/integration tests/property tests/unit
	$(BIN)/python -m pytest tests/e2e --ignore $(ALONE)

bench: install  ## every hop beside other ways of doing it; writes docs/benchmarks
	$(BIN)/python -m benchmarks --write
	$(BIN)/python -m benchmarks.cdc --write

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
