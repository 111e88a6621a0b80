# `make run` and `make test` are all a newcomer needs; `make help` lists the rest.
# Everything goes through `install`: a virtual environment in .venv, brought up to date when its inputs change.

BIN := .venv/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# The Python that .venv is made with: the first of these that is 3.10 or 3.11 and able to make one.
PYTHON ?= python3.11 python3.10 python3
# On Linux PyPI's torch brings gigabytes of CUDA along; this index has the CPU builds. Empty: pip's own set-up alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
QUIET := --quiet --disable-pip-version-check
# `make run ARGS='--port 8080'`, `make test ARGS='-k sampling'`
ARGS ?=
# `make neuronx-tgi` builds the image for Inferentia2, with TARGET=cpu the one without an accelerator.
DOCKER ?= docker
TARGET ?= neuron
# NEURON_STACK=legacy: with optimum-neuron 0.0.28, for gpt2, opt, bloom, mistral and what was compiled then.
NEURON_STACK ?= current
IMAGE ?= neuronx-tgi:$(VERSION)$(if $(filter cpu,$(TARGET)),-cpu,$(if $(filter legacy,$(NEURON_STACK)),-legacy))

.PHONY: help install run test test-clients test-neuron-hosts lint protos integration-test bench constraints neuronx-tgi clean
.DEFAULT_GOAL := help

# A .venv that was moved here (its scripts name the old place), or whose Python is gone, is made anew.
$(shell [ ! -e .venv ] || grep -qsF '$(CURDIR)/.venv/bin/' $(BIN)/pip && $(BIN)/python -c '' 2>/dev/null \
    || { rm -f .venv/installed; touch .venv/unfinished; })

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

install: .venv/installed  ## make or update the virtual environment .venv

# `unfinished` lies there while pip works: after an interruption the next run begins with an empty .venv.
.venv/installed: pyproject.toml constraints.txt
	@if [ -e .venv/unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory .venv/new || exit 1; \
	fi
	@touch .venv/unfinished
	@index='$(TORCH_INDEX)'; \
	if [ -n "$$index" ] && ! $(BIN)/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' \
	    "$$index/torch/" 2>/dev/null; then \
	    echo "  $$index does not answer: torch comes from where pip finds it by itself"; index=; \
	fi; \
	echo "  installing neuronx-tgi $(VERSION), torch and the development tools into .venv (minutes, the first time)"; \
	$(BIN)/python -m pip install $(QUIET) $${index:+--extra-index-url "$$index"} \
	    --constraint constraints.txt --editable '.[cpu,dev]'
	@rm .venv/unfinished
	@touch $@

.PHONY: .venv/new
.venv/new:
	@for python in $(PYTHON); do \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))' \
	        2>/dev/null || continue; \
	    echo "  making .venv with $$($$python --version)"; \
	    exec $$python -m venv --clear .venv; \
	done; \
	echo "make install: none of '$(PYTHON)' is a Python 3.10 or 3.11 that can make a virtual environment." >&2; \
	echo "Install one (on Debian and Ubuntu: apt-get install python3.11-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

run: install  ## serve the embedded demo model on the CPU (ARGS='...' reach the launcher)
	@$(BIN)/text-generation-launcher $(ARGS)

test: install  ## unit and integration tests (ARGS='...' reach pytest)
	$(BIN)/python -m pytest tests integration-tests $(ARGS)

integration-test: install  ## only the tests with real processes, sockets and clients
	$(BIN)/python -m pytest integration-tests $(ARGS)

# The newest clients do not go with the server's own packages, so they have an environment of their own; the one for
# Node comes from npm. Everything is pinned, hence --no-deps.
CLIENTS := integration-tests/clients
test-clients: install build/clients/installed  ## published clients (openai, litellm, Node ...) against a real server
	$(BIN)/python $(CLIENTS)/matrix.py

build/clients/installed: $(CLIENTS)/requirements.txt $(CLIENTS)/package-lock.json
	@command -v npm >/dev/null || { echo "make test-clients: needs node and npm (on Debian: apt-get install npm)" >&2; exit 1; }
	@$(BIN)/python -m venv --clear build/clients
	@echo "  installing the clients into build/clients and $(CLIENTS)/node_modules"
	@build/clients/bin/python -m pip install $(QUIET) --no-deps --no-compile --requirement $(CLIENTS)/requirements.txt
	@cd $(CLIENTS) && npm ci --silent --no-audit --no-fund
	@touch $@

# optimum-neuron's own code on the CPU, a release in each environment, over stand-ins for AWS's packages. torch is large,
# so it is .venv's: same version, same Python. The rest is pinned, hence --no-deps.
HOSTS := 0.4.5 0.3.0 0.0.28
test-neuron-hosts: $(HOSTS:%=test-neuron-host-%)  ## the contract of backends on three releases of optimum-neuron
	@$(BIN)/python tests/contract/matrix.py nxd-0.4.5 nxd-0.3.0 legacy-0.0.28

test-neuron-host-0.4.5: COLUMN := nxd-0.4.5
test-neuron-host-0.3.0: COLUMN := nxd-0.3.0
test-neuron-host-0.0.28: COLUMN := legacy-0.0.28
.PHONY: $(HOSTS:%=test-neuron-host-%)
$(HOSTS:%=test-neuron-host-%): test-neuron-host-%: build/hosts/%/installed
	@rm -f build/contract/$(COLUMN).json
	build/hosts/$*/bin/python -m pytest tests/contract tests/hosts --subject $(COLUMN) \
	    -W ignore::pytest.PytestConfigWarning $(ARGS)

build/hosts/%/installed: tests/hosts/requirements-%.txt .venv/installed
	@$(BIN)/python -m venv --clear build/hosts/$*
	@echo "  installing optimum-neuron $* into build/hosts/$*"
	@build/hosts/$*/bin/python -m pip install $(QUIET) --no-deps --no-compile --requirement $<
	@cd build/hosts/$*/lib/python*/site-packages && ln -sf $(CURDIR)/.venv/lib/python*/site-packages/torch* \
	    $(CURDIR)/.venv/lib/python*/site-packages/functorch .
	@touch $@

lint: install  ## ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Its own protoc: from 26 on, generated code refuses a protobuf older than the protoc that wrote it, and the generator
# of the legacy image has protobuf 3.20.
protos: install  ## regenerate neuron_server/wire/pb from protos/generator.proto
	@$(BIN)/python -m venv build/protoc && build/protoc/bin/python -m pip install $(QUIET) grpcio-tools==1.62.3 'setuptools<80'
	build/protoc/bin/python -m grpc_tools.protoc --proto_path=neuron_server/wire/pb=protos \
	    --python_out=. --pyi_out=. neuron_server/wire/pb/generator.proto

# A file of benchmarks/ without a main is a module of the others.
bench: install  ## run every program of benchmarks/
	@set -e; for program in $$(grep -l __main__ benchmarks/*.py); do \
	    echo "== $$program"; $(BIN)/python $$program; \
	done

# uv resolves for both Pythons and all platforms at once. torch's CUDA parts stay out: they are not what is installed.
UV := build/uv/bin/uv pip compile --quiet --no-header --no-annotate --upgrade
constraints: install  ## write constraints.txt anew, from the newest versions
	@$(BIN)/python -m venv build/uv && build/uv/bin/python -m pip install $(QUIET) uv
	@{ sed '/^#/!d' constraints.txt; \
	   $(UV) --universal --python-version 3.10 --extra cpu --extra dev pyproject.toml \
	   | grep -vE "^(torch|triton|setuptools|nvidia-.*|cuda-.*)==|>= '3.12'" | sed "s/== '3.11.\*'/>= '3.11'/"; \
	} > build/constraints.txt && mv build/constraints.txt constraints.txt

neuronx-tgi:  ## build the image neuronx-tgi:VERSION for Inferentia2 (TARGET=cpu: without accelerator)
	$(DOCKER) build --target $(TARGET) --build-arg VERSION=$(VERSION) --build-arg NEURON_STACK=$(NEURON_STACK) --tag $(IMAGE) .

clean:  ## remove what was built and cached (.venv stays)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache benchmarks/results
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
