# Each target works on a fresh clone with python3 (3.11 or newer), g++ and make. ARGS= is passed on.

PYTHON ?= python3
ARGS ?=

# See fastcodec/_threads.py: a busy machine would otherwise make small network calls ten times slower.
export GOMP_SPINCOUNT ?= 10000

VENV := .venv
BIN := $(VENV)/bin
# Always under the constraints: a free version of PyTorch would bring gigabytes.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CXX_SOURCES = find kernels tests bench fastcodec -name build -prune -o -type f \
	\( -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \) -print0

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench build venv clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build  ## compress and restore a few photographs, and show what it took (ARGS= to change how)
	$(BIN)/python -m fastcodec.demo $(ARGS)

test: build  ## run the tests (ARGS='-k name' to choose)
	$(BIN)/python -m pytest $(ARGS)

lint: venv  ## check style and format of Python, C++ and CUDA
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(CXX_SOURCES) | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

format: venv  ## format Python, C++ and CUDA, and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(CXX_SOURCES) | xargs -0 -r $(BIN)/clang-format -i

bench: build $(VENV)/bench.stamp  ## run the benchmarks, with the other coders beside ours (ARGS= to choose)
	$(BIN)/python -m bench $(ARGS)

build: venv  ## build the C++ library
	@$(BIN)/python kernels/build.py

venv: $(VENV)/venv.stamp  ## create or update .venv

clean:  ## remove what was built and cached
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache out
	find kernels fastcodec tests bench \( -name __pycache__ -o -name build \) -type d -prune -exec rm -rf {} +
	find kernels fastcodec -name '*.so' -delete

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

$(VENV)/venv.stamp: pyproject.toml setup.py constraints.txt
	@echo 'Setting up $(VENV): a few minutes the first time'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastcodec needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools ninja
	$(PIP) --no-build-isolation --editable '.[test,lint,demo]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/venv.stamp
	$(PIP) --no-build-isolation --editable '.[bench]'
	$(PIP) --no-deps compressai
	@touch $@
