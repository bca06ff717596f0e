# make run    eight peers train the digits on this machine while peer 0 is four times slower
# make test   everything CI checks: ruff, mypy, import contracts, generated code, pytest
# make test-fast   the same without the tests marked slow
# make test-docker   the image and the compose cluster on the Docker engine that answers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-fast lint types contracts unit unit-fast test-docker proto dashboards table race agreement study laboratory bench-exchange clean

run: $(VENV)/run-ready
	$(BIN)/grapevine up --peers 8 --algorithm dpsgd --topology ring --straggler 0=4x --chunk-seconds 0.01 --target-loss 0.1

test: lint types contracts unit

test-fast: lint types contracts unit-fast

lint: $(VENV)/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test-ready
	$(BIN)/mypy

contracts: $(VENV)/test-ready
	$(BIN)/lint-imports

# bytecode is written whatever the environment says: else each of the many processes that tests start compiles all modules anew
unit unit-fast: export PYTHONDONTWRITEBYTECODE =
unit: $(VENV)/test-ready
	$(BIN)/pytest

unit-fast: $(VENV)/test-ready
	$(BIN)/pytest -m "not slow"

# builds the image (minutes the first time) and starts clusters of containers
test-docker: $(VENV)/test-ready
	$(BIN)/pytest -n 0 -m docker tests/docker

# the generated wire code in peer/wire, after a change of the schema in proto/
proto: $(VENV)/test-ready
	PYTHON=$(BIN)/python sh proto/generate.sh

# Grafana's dashboards in docker/grafana/provisioning, after a change of their source in docker/grafana/dashboards
dashboards: $(VENV)/test-ready
	PYTHONPATH=docker/grafana $(BIN)/python -m dashboards

# the table of the README: 72 real runs, about an hour on a machine that does nothing else
table: $(VENV)/run-ready
	$(BIN)/python bench/straggler_table.py --chunk-seconds 0.03 --parallel 4

# against torch DDP and local SGD over gloo: 32 real runs, most of half an hour
race: $(VENV)/run-ready
	$(BIN)/python bench/race.py

# predicted by the simulator against measured: nine real runs
agreement: $(VENV)/run-ready
	$(BIN)/python bench/agreement.py

# chunks, closing and in-flight rule over all scenarios, in virtual time
study: $(VENV)/run-ready
	$(BIN)/python bench/straggler_study.py

# all methods over all scenarios, in virtual time, then the best four as real processes: the tables of docs/algorithms.md
laboratory: $(VENV)/run-ready
	$(BIN)/python bench/laboratory.py
	$(BIN)/python bench/laboratory.py --real

# vectors over raw sockets, gloo, gRPC and data sockets, taking turns; most of half an hour
bench-exchange: $(VENV)/run-ready
	$(BIN)/python bench/exchange.py

$(VENV)/run-ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("grapevine needs Python >= 3.11, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test-ready: $(VENV)/run-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
