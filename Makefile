# Two commands matter: make demo, make test. The rest is in `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
STAMP_BENCH := $(VENV)/.installed-bench
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      install, then find the digit that does not belong (a minute)"
	@echo "make install   $(BIN)/python and $(BIN)/offmanifold"
	@echo "make test      the whole test suite"
	@echo "make lint      ruff and mypy --strict"
	@echo "make bench     speed beside bare PyTorch and plain implementations (half an hour)"
	@echo "make clean     remove $(VENV) and what the commands above wrote"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch by itself first: with its version pinned, pip takes the CPU build where one is at hand.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) …"
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -e .
	@touch $@

$(STAMP_DEV): $(STAMP)
	$(INSTALL) -e '.[dev]'
	@touch $@

$(STAMP_BENCH): $(STAMP_DEV)
	$(INSTALL) -e '.[bench]'
	@touch $@

install: $(STAMP)
	@echo "Ready: $(BIN)/offmanifold --help"

demo: $(STAMP)
	$(BIN)/offmanifold demo

test: $(STAMP_DEV)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(STAMP_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP_BENCH)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/chains.py
	$(BIN)/python benchmarks/vae.py
	$(BIN)/python benchmarks/restarts.py

clean:
	rm -rf $(VENV) offmanifold-demo bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
