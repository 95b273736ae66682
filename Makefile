# make demo, demo-detection: from nothing to a trained network; make test, test-slow, lint: what
# CI runs.
# Needs Python 3.10 to 3.12 with its headers and venv, and g++. PYTHON=... picks an interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
SHELL := /bin/bash
# A name, as a comma would part the arguments of a call.
WITH_TOOLS := '.[dev,mlflow]'

.DEFAULT_GOAL := help
.PHONY: help demo demo-detection install install-dev test test-slow test-torture lint clean

help:
	@echo "make demo       train DFormer-Tiny on rendered RGB-D scenes and show what it learnt"
	@echo "make demo-detection  train an RT-DETR detector on such scenes, and draw what it finds"
	@echo "make test       the quick tests        make test-slow  the long ones"
	@echo "make test-torture  kill, corrupt and starve runs (TORTURE=full: every repetition)"
	@echo "make lint       format, lint, types and import contracts"
	@echo "make clean      remove .venv and build/ (compiled kernels are in ~/.cache/jittor)"

# $(call timed,NAME,COMMAND): run a command and keep its seconds in build/times/NAME.
define timed
	@mkdir -p $(BUILD)/times; began=$$(date +%s); \
	{ $(2); } || exit 1; \
	echo $$(( $$(date +%s) - began )) > $(BUILD)/times/$(1)
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	{ echo "$(PYTHON) is not Python 3.10 to 3.12; try: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	{ rm -rf $(VENV); echo "no venv module; on Debian: apt-get install python3-venv"; exit 1; }

# What is installed, by the description that it was installed from.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	$(call timed,install,$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .)
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), with the tools for tests ..."
	$(call timed,install,$(BIN)/python -m pip install --quiet --disable-pip-version-check -e $(WITH_TOOLS))
	@touch $@ $(VENV)/installed

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# $(call demonstrate,NAME): train and test with configs/NAME.yaml, and say where the time went.
# The second run finds .venv, the scenes and the kernels, and only trains.
define demonstrate
	@mkdir -p $(BUILD)/times && touch $(BUILD)/times/install
	@$(BIN)/segtasks doctor > $(BUILD)/doctor.txt || { cat $(BUILD)/doctor.txt; exit 1; }
	@$(BIN)/segtasks fit --config $(1).yaml
	@$(BIN)/segtasks test --config $(1).yaml --ckpt_path best
	@$(BIN)/python benchmarks/demo_times.py "$$(cat $(BUILD)/times/install)" runs/$(1)
endef

demo: install
	$(call demonstrate,demo)

demo-detection: install
	$(call demonstrate,demo_detection)

test: install-dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install-dev
	$(BIN)/python -m pytest -m "slow and not gpu and not torture"

test-torture: install-dev
	$(BIN)/python -m pytest -m "torture and not gpu" tests/torture

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(BUILD)
