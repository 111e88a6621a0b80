# Every target goes through `install`: a virtual environment in .venv that a changed pyproject.toml rebuilds.
PYTHON ?= python3.11
BIN := .venv/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: install run test lint protos integration-test bench neuronx-tgi clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[cpu,dev]'
	touch $@

run: install
	$(BIN)/text-generation-launcher
