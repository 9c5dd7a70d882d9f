# Every command a contributor needs; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8000
# Constraints pin every package to the version that the tests ran with.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup demo test test-quick test-long test-all lint typecheck bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed ## make .venv and install graft with the extras demo, dev and eval

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "graft needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,dev,eval]'
	@touch $@

demo: setup ## sweep the quickstart (every probe on a real task; a small generative model), serve the best arm, ask it
	PATH="$(CURDIR)/$(BIN):$$PATH" jobs/demo.sh demo $(PORT)

# The job's own exit code is in make's last line (make itself ends with 2 for any other than 0).
submit: setup ## run SPEC=jobs/specs/... as a job on a cluster [STORAGE=URI] [ADDRESS=http://head:8265]
	$(BIN)/python jobs/submit.py $(SPEC) $(if $(STORAGE),--storage $(STORAGE)) $(if $(ADDRESS),--address $(ADDRESS))

# One session for all of them: a cluster and a server are started once for what they share.
test: setup ## run the tests that every change must pass: half an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not gpu and not long'

test-quick: setup ## of these, those that take seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu and not cluster and not long'

test-long: setup ## run those that take longest: a Slurm cluster, trainings and sweeps killed in every way
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'long and not gpu'

test-all: setup ## run every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: setup ## check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

typecheck: setup ## check types
	$(BIN)/mypy

bench: setup ## measure; each prints ratios of both sides from one run
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/sweep.py

clean: ## remove what the targets made, the environment included
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis platform/graft_compose.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
