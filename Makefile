# The two commands: `make quickstart`, `make test`. Everything else is for people who change the code.
PY ?= python3
HASH := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-12)
READY := .venv/.ready-$(HASH)
BIN := .venv/bin

.PHONY: quickstart test lint types format bench arm64 web gpu gpu-train clean setup
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   set up, train a small network, export it, cut out a photo (5 to 12 minutes)"
	@echo "make test         set up and run the tests"
	@echo "make lint types   ruff and mypy"
	@echo "make bench        measure speed on this machine, write export/results/*.csv"
	@echo "make arm64 DIR=   run the fixed-path .pte files of an export on emulated AArch64, count instructions"
	@echo "make web DIR=     run every .onnx of an export in headless Chromium"
	@echo "make gpu          check and measure the kernels on an NVIDIA GPU (under 10 minutes, no download)"
	@echo "make gpu-train    train the preset phone on an NVIDIA GPU in sittings of 9 minutes (FROM=, OUT=, ARGS=)"
	@echo "make clean        remove the environment and the caches"

setup: $(READY)

$(READY):
	@$(PY) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer with venv: make PY=python3.11"; exit 1; }
	@echo "setting up .venv (about two minutes)"
	@$(PY) -m venv --clear .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' || { echo "set-up failed: see above, then run make clean and try again"; exit 1; }
	@touch $@

quickstart: $(READY)
	@$(BIN)/pam-mobile quickstart --out runs/quickstart

test: $(READY)
	@$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)
	@$(BIN)/python export/bench/training.py
	@$(BIN)/python export/bench/run.py

arm64: $(READY)
	@$(BIN)/python export/arm64/run.py $(or $(DIR),$(error make arm64 DIR=EXPORT_FOLDER)) $(ARGS)

web: $(READY)
	@$(BIN)/python -m pam_export.webpage $(or $(DIR),$(error make web DIR=EXPORT_FOLDER))

# No set-up: it takes the torch and triton that the machine has, or those of .venv. Exit code 3: no NVIDIA GPU.
gpu:
	@p=$(PY); $$p -c 'import torch, triton' 2>/dev/null || p=$(BIN)/python; \
	$$p -c 'import torch, triton' 2>/dev/null || { echo "make gpu needs a Python with torch and triton: make gpu PY=..."; exit 3; }; \
	$$p kernels/bench/run.py

# One sitting; FROM is the OUT of the one before. No set-up either. Exit codes: 0 trained, 130 to be continued, 3 no NVIDIA GPU.
gpu-train:
	@p=$(PY); $$p -c 'import torch, cattrs' 2>/dev/null || p=$(BIN)/python; \
	$$p -c 'import torch, cattrs' 2>/dev/null || { echo "make gpu-train needs a Python with torch and cattrs: make gpu-train PY=..."; exit 3; }; \
	PYTHONPATH=.:kernels:export:$$PYTHONPATH $$p -m pam_mobile.train.pieces --out "$${OUT:-runs/pieces}" $(if $(FROM),--from $(FROM)) -- --preset phone $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
