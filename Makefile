# make install | quickstart | test | test-fast | test-all | lint: each sets up .venv first where that is missing, and only then.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: install quickstart test test-fast test-long test-all lint coverage wheel perf perf-evaluators perf-losses perf-generator perf-store perf-images measure-gate gpu-report test-kills test-cluster test-cluster-long cluster-campaign clean

install: $(READY)
	@echo "ddbench is installed. Begin with: $(BIN)/ddbench run quickstart (or '. $(BIN)/activate' once, then: ddbench run quickstart)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ddbench needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "Making a Python environment of its own in $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing torch and the rest into $(VENV): some minutes, and gigabytes where pip brings CUDA. pip says what it does:"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint]'
	@touch $@

quickstart: $(READY)
	@$(BIN)/ddbench run quickstart

# A process a core; one that has nothing left takes over tests of another.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# What every change must pass.
test: $(READY)
	$(PYTEST) -m 'not long'

# The quick ones of the unit tests, for between two edits.
test-fast: $(READY)
	$(PYTEST) -m 'not slow and not long' tests/unit

# What `test` leaves out.
test-long: $(READY)
	$(PYTEST) -m long

# Everything.
test-all: $(READY)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Which lines the tests run; a report, and no threshold. Processes that tests start are not counted.
coverage: $(READY)
	$(BIN)/python -m pip install --constraint constraints.txt pytest-cov
	$(PYTEST) -m 'not long' --cov=ddbench --cov=ddbench_plugins --cov-report=term --cov-report=html:runs/coverage

# The wheel, in a virtual environment of its own, runs the quickstart outside of the source tree.
wheel: $(READY)
	rm -rf dist && $(BIN)/python -m pip wheel --no-deps --wheel-dir dist .
	rm -rf dist/try && $(PYTHON) -m venv dist/try/venv
	dist/try/venv/bin/python -m pip install --constraint constraints.txt dist/*.whl
	cd dist/try && venv/bin/ddbench run quickstart --store quickstart

perf: $(READY)
	$(BIN)/python -m pytest tests/perf --benchmark-only --ignore tests/perf/test_evaluator_ways.py --ignore tests/perf/test_loss_steps.py --ignore tests/perf/test_generator_steps.py

# Minutes on a GPU, an hour on a CPU: give it an idle machine.
perf-evaluators: $(READY)
	$(BIN)/python tests/perf/measure.py

# A quarter of an hour on two cores, minutes on a GPU: give it an idle machine too.
perf-losses: $(READY)
	$(BIN)/python tests/perf/measure_losses.py

# A quarter of an hour on two cores and, for the published form, 21 GiB of memory: give it an idle machine.
perf-generator: $(READY)
	$(BIN)/python tests/perf/measure_generator.py

# A store of 10,000 judgements: what the commands take that only look at it.
perf-store: $(READY)
	$(BIN)/python tests/perf/measure_store.py

# What the regression gate sees in the quickstart: twenty runs with other seeds, and planted faults. Two hours on two cores.
measure-gate: $(READY)
	$(BIN)/python tests/perf/measure_gate.py

# Images of a ten-class subset: decoding, opening, serving. Minutes on two cores.
perf-images: $(READY)
	$(BIN)/python tests/perf/measure_images.py

# On a machine with a card: PART=tests, then evaluators, losses, generator and tables, each under nine minutes; goes on where it was cut off.
# With the Python that has torch for the card: make gpu-report PART=tests GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu-report: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	@test -n "$(PART)" || { echo "which part? make gpu-report PART=tests, then evaluators, losses, generator and tables" >&2; exit 2; }
	$(GPU_PYTHON) tests/perf/gpu_report.py $(PART)

# A hundred times kill -9 at random moments, each store compared byte for byte: half an hour on two cores.
test-kills: $(READY)
	$(BIN)/python -m pytest -s -m long -k hundred_kills tests/unit/test_runner.py

# A grid on a real Slurm of one node and a real Ray, both begun on this machine by the tests: see docs/clusters.md. Slurm needs root
# and Debian's packages slurmd, slurmctld, slurm-client and munge. What is not installed is skipped aloud.
CLUSTER := $(VENV)/.ready-cluster
$(CLUSTER): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint,slurm,ray]'
	@touch $@

test-cluster: $(CLUSTER)
	$(BIN)/python -m pytest -rs -m 'not long' tests/cluster

# The quickstart too: an hour on two cores.
test-cluster-long: $(CLUSTER)
	$(BIN)/python -m pytest -rs tests/cluster

# Fifty kills at random moments on each, each store compared byte for byte with the local executor's: hours on two cores.
KILLS ?= 50
cluster-campaign: $(CLUSTER)
	$(BIN)/python tests/cluster/campaign.py --kills $(KILLS) --out tests/cluster/campaign.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
