# scalebench: type `make help`. Everything runs in .venv, which is made when missing or older than requirements.lock.

CLUSTER ?= local
SWEEP   ?= smoke
SIZE    ?= full
RESULTS ?= results
ARGS    ?=
PYTHON_FOR_VENV ?= python3
TEST_PROCESSES  ?= 2

PYTHON := .venv/bin/python
STAMP  := .venv/.requirements.lock
RUN    := $(PYTHON) -m benchmarks.run --multirun cluster=$(CLUSTER) sweep=$(SWEEP) size=$(SIZE) results=$(RESULTS)
# The folder of a sweep's size.
FOLDER := $(RESULTS)/$(CLUSTER)/$(SWEEP)$(if $(filter-out full,$(SIZE)),-$(SIZE))
# Slurm only takes the jobs: tables come later, with `make report`.
TABLES_FOLLOW := $(or $(filter local,$(CLUSTER)),$(filter basic,$(HYDRA_LAUNCHER)),$(findstring wait=true,$(ARGS)))
# With CLUSTER or SWEEP given, that sweep; else the newest.
CHOSEN := $(if $(findstring command line,$(origin CLUSTER) $(origin SWEEP)),$(FOLDER),)

.DEFAULT_GOAL := help
.PHONY: help list sweep study plan status cancel report check test test-cluster bench image cluster-up cluster-down format lock clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: CLUSTER=$(CLUSTER) SWEEP=$(SWEEP) SIZE=$(SIZE) RESULTS=$(RESULTS) ARGS=\"workers=1,2 optimizer.lr=0.1\""

list: $(STAMP) ## all sweeps, with the question that each answers and what it costs
	@$(PYTHON) -m benchmarks.catalogue cluster=$(CLUSTER)

study: $(STAMP) ## run a sweep to its end and name its figure and table; SIZE=tiny for a laptop
	@$(PYTHON) -m analysis.study_check $(SWEEP)
	@$(RUN) wait=true $(ARGS); code=$$?; [ $$code -le 1 ] || exit $$code; \
	$(PYTHON) -m analysis.scaling $(FOLDER) && exit $$code

sweep: $(STAMP) ## run a sweep, or what is missing of it, and show its tables; with CLUSTER=..., submit it to Slurm
	@$(PYTHON) -m analysis.study_check $(SWEEP)
	@$(RUN) $(ARGS); code=$$?; [ $$code -le 1 ] || exit $$code; \
	[ -z "$(TABLES_FOLLOW)" ] || $(PYTHON) -m analysis.scaling --results $(RESULTS) && exit $$code

plan: $(STAMP) ## show what a sweep would run, its cost and its job scripts, and run nothing
	@$(PYTHON) -m analysis.study_check $(SWEEP)
	@$(RUN) plan=true $(ARGS)

status: $(STAMP) ## the live state of a sweep (the newest, or CLUSTER=... SWEEP=...); ARGS=--watch stays
	@$(PYTHON) -m slurm.status $(CHOSEN) --results $(RESULTS) $(ARGS)

cancel: $(STAMP) ## take a sweep's jobs back (the newest's, or CLUSTER=... SWEEP=...); results stay
	@$(PYTHON) -m slurm.cancel $(CHOSEN) --results $(RESULTS)

report: $(STAMP) ## tables, figures and the page report.html of a sweep (the newest, or CLUSTER=... SWEEP=...)
	@$(PYTHON) -m analysis.report $(CHOSEN) --results $(RESULTS) $(ARGS)

check: $(STAMP) ## format, lint, types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# Several at a time first, since many tests wait; then by itself what judges times. The gate is for both together.
test: $(STAMP) ## all tests, with the coverage gate
	$(PYTHON) -m pytest -m "not cluster and not alone" --cov --cov-report= --cov-fail-under=0 \
	  --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder
	$(PYTHON) -m pytest -m "alone and not cluster" --cov --cov-append

test-cluster: $(STAMP) ## tests against a real Slurm on this machine; as root on Debian
	$(PYTHON) -m pytest -m cluster --timeout=1800

bench: $(STAMP) ## measure the suite itself: its overhead, its start, its analysis of 10,000 records
	$(PYTHON) -m tests.bench

BASE   ?= auto
IMAGES ?= images
image: $(STAMP) ## build the container image that runs can be made in; BASE=debian|thin|docker|docker://NAME:TAG
	@$(PYTHON) -m containers.build --base $(BASE) --images $(IMAGES)

cluster-up: ## a real Slurm cluster of four nodes on this machine (Debian, root), to try sweeps on
	@slurm/onehost.sh up

cluster-down: ## end that cluster and its running jobs; its queue and accounting stay
	@slurm/onehost.sh down

format: $(STAMP) ## format the code
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .

lock: ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --no-strip-extras -q -o requirements.lock

clean: ## remove .venv and caches; results stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv where there is one, pip otherwise. The stamp is written last, so an interrupted installation is done again.
$(STAMP): requirements.lock
	@$(PYTHON_FOR_VENV) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON_FOR_VENV) is older than Python 3.11; name another one: make ... PYTHON_FOR_VENV=python3.12"; exit 2; }
	@echo "Making .venv from requirements.lock (PyTorch with CUDA: about 5 GB, a minute or more) ..."
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON_FOR_VENV) .venv && \
	  uv pip sync --require-hashes --python $(PYTHON) requirements.lock; \
	else \
	  $(PYTHON_FOR_VENV) -m venv .venv && \
	  $(PYTHON) -m pip install --disable-pip-version-check --progress-bar on --require-hashes -r requirements.lock; \
	fi
	@cp requirements.lock $@
