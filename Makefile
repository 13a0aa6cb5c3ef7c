# Everything a newcomer needs: `make demo` shows it, `make test` checks it. Needs Python 3.11 or later, and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -P -m pytest
BESIDE := -o cache_dir=.pytest_cache/beside

# These suites put more processes on a machine than it has cores. What fails for that alone is told, not
# hidden: up to ten failures (1 is the code for no worse, a colon the mark of a test) are tried again by themselves, and
# may not fail again. To be called with the marked tests, and how to share them out.
define beside
	$(PYTEST) -m $(1) $(BESIDE) --cache-clear -n auto --dist $(2) --maxfail 11 || { test $$? -eq 1 && \
		! grep '"[^:]*": true' .pytest_cache/beside/v/cache/lastfailed && \
		echo 'Once more by themselves; what is PASSED below failed beside others and passes only alone:' && \
		$(PYTEST) -m $(1) $(BESIDE) --last-failed --last-failed-no-failures none -rfEp; }
endef

.DEFAULT_GOAL := help
# The listing of the tests compiles them for the workers, where the environment does not forbid it.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install demo test test-servers kafka lint coverage bench clean

help:
	@echo 'make demo          two apps, one event after another, a killed broker: a few seconds'
	@echo 'make test          lint, types, and every suite that wheels can bring'
	@echo 'make test-servers  the suites that need Debian packages, Java or a container engine'
	@echo 'make kafka         Apache Kafka for those suites, fetched once: needs Java 17 and Maven'
	@echo 'make coverage      the unit and contract suites, with what they do not reach'
	@echo 'make bench         throughput and latency, beside the bare client in the same run'
	@echo 'make lint          style, types and the direction of imports'
	@echo 'make clean         forget the virtual environment and all caches'

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Meshwire needs Python 3.11 or later, this is " + sys.version.split()[0] + "; say PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'this Python cannot make a virtual environment; on Debian: apt-get install python3-venv'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[faststream]" --group test --group lint
	@# An installed wheel comes compiled; a source tree should start as quickly, also where Python may not write.
	$(BIN)/python -m compileall -q mesh brokers bindings sidecar
	@touch $@

demo: install
	@$(BIN)/python -P examples/demo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: install lint
	@echo 'Left out are these, which need more than wheels bring (make test-servers):'
	@$(PYTEST) -m servers --collect-only -qq
	$(call beside,"not servers and not quiet",worksteal)
	$(PYTEST) -m "quiet and not servers"

# Where there is no Java, what needs Apache Kafka is skipped.
test-servers: install
	-@$(BIN)/python -P tests/servers/kafka_jars.py
	$(call beside,servers,loadfile)

kafka: install
	@$(BIN)/python -P tests/servers/kafka_jars.py

coverage: install
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not servers" tests/unit tests/contract tests/api
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: install
	$(BIN)/python -P -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* build dist
