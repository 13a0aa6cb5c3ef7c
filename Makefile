# Everything a newcomer needs: `make demo` shows it, `make test` checks it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: install demo test test-servers lint bench clean

install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Meshwire needs Python 3.11 or later, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[faststream]" --group test --group lint
	touch $@

demo: install
	$(BIN)/python -P examples/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: install lint
	$(BIN)/python -P -m pytest -m "not servers"

test-servers: install
	$(BIN)/python -P -m pytest -m servers

bench: install
	$(BIN)/python -P -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
