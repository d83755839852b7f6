# Everything a developer or a new user runs; `make help` lists it.
# Tests run in one process per core with one thread each: small networks are slower on several threads.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo tensorboard test test-browser test-all test-gpu lint format types bench bench-gpu clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## Make the environment in .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)  ## Train a classifier on real digits with a live LLC, and say where to look
	$(BIN)/python examples/digits.py

tensorboard: $(READY)  ## Open TensorBoard on the demo's logs
	$(BIN)/tensorboard --logdir runs

test: $(READY)  ## Run the tests that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow and not gpu and not browser"

test-browser: $(READY)  ## Drive the TensorBoard tab in a headless Chromium (Debian: apt-get install chromium chromium-driver)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m "browser and not slow" tests/test_tab_browser.py

test-all: $(READY)  ## Run every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test-gpu: $(READY)  ## Run the tests that need a CUDA device
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m gpu

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## Apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## Check types, strictly
	$(BIN)/mypy

bench: $(READY)  ## Chain-steps per second beside devinterp and the bare passes
	$(BIN)/python -m benchmarks.chain_speed

bench-gpu: $(READY)  ## On a CUDA device: speed, precision, roofline and peak memory
	$(BIN)/python -m benchmarks.chain_speed --device cuda --contenders ours "bare vmap" "training step" noise
	$(BIN)/python -m benchmarks.roofline --device cuda
	$(BIN)/python -m benchmarks.precision --device cuda
	$(BIN)/python -m benchmarks.peak_memory --device cuda --precision bf16-mixed
	$(BIN)/python -m benchmarks.peak_memory --device cuda --precision bf16-mixed --offload --width 2048 --layers 20 --cases one-chain

clean:  ## Remove the environment and everything made
	rm -rf $(VENV) runs lightning_logs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
