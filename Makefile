# Each target works on a fresh clone with python3 (3.11 or newer), g++ and make. ARGS= is passed on.

PYTHON ?= python3
ARGS ?=

# See fastcodec/threads.py: a busy machine would otherwise make small network calls ten times slower.
export GOMP_SPINCOUNT ?= 10000

VENV := .venv
BIN := $(VENV)/bin
# Always under the constraints: a free version of PyTorch would bring gigabytes.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CXX_SOURCES = find kernels tests bench fastcodec -name build -prune -o -type f \
	\( -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \) -print0

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench compressai gpu gpu-check gpu-pack site build-bare build venv clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build  ## compress and restore a few photographs, and show what it took (ARGS= to change how)
	$(BIN)/python -m fastcodec.demo $(ARGS)

test: build  ## run the tests (ARGS='-k name' to choose)
	$(BIN)/python -m pytest $(ARGS)

lint: venv site  ## check style, format and types of Python, style of C++ and CUDA
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd $(SITE) && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache
	$(CXX_SOURCES) | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

format: venv  ## format Python, C++ and CUDA, and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(CXX_SOURCES) | xargs -0 -r $(BIN)/clang-format -i

docs: build  ## build the guides and the reference of the docstrings into build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs $(ARGS)

bench: build $(VENV)/bench.stamp  ## run the benchmarks, with the other coders beside ours (ARGS= to choose)
	$(BIN)/python -m bench $(ARGS)

compressai: build $(VENV)/bench.stamp  ## run CompressAI's own tests, which pip fetches, on the adapter in both modes
	$(BIN)/python tests/compressai_suite.py compatible
	$(BIN)/python tests/compressai_suite.py native

gpu: gpu-check build-bare site  ## on a machine with a GPU: stages of tests, figures and training (STAGES=, DATA=, OUT=, SECONDS=)
	@$(GPU_ENV) $(PYTHON) -m bench.gpu $(STAGES) --seconds $(SECONDS) $(if $(DATA),--data $(DATA)) \
		$(if $(OUT),--out $(OUT)) $(ARGS)

gpu-pack: venv  ## training images and Kodak for such a machine, in few megabytes (DATA=, KODAK=, OUT=.gpu)
	$(BIN)/python -m bench.gpu.pack $(DATA) $(or $(OUT),.gpu) $(if $(KODAK),--kodak $(KODAK)) $(ARGS)

build: venv  ## build the C++ libraries, and with nvcc the CUDA kernels
	@$(BIN)/python kernels/build.py

venv: $(VENV)/venv.stamp  ## create or update .venv

# `make gpu` is for machines that have PyTorch, ninja and pytest but no network: nothing is installed. Links in
# build/site show Python the packages as an installation would (kernels/ is fastcodec.kernels), and PYTHONSAFEPATH
# keeps it from finding the checkout's own fastcodec/, which lacks them. docs/gpu.md says what to run, and in what order.
STAGES ?= compile smoke latency codec
SECONDS ?= 480
SITE := build/site
GPU_ENV = PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/$(SITE)$${PYTHONPATH:+:$$PYTHONPATH}"

gpu-check:
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo 'make gpu: $(PYTHON) has no PyTorch that finds a GPU; make test tests what needs none' >&2; exit 1; }

build-bare:
	@$(PYTHON) kernels/build.py

site:
	@rm -rf $(SITE)
	@mkdir -p $(SITE)/fastcodec
	@ln -s "$(CURDIR)"/fastcodec/* $(SITE)/fastcodec
	@ln -s "$(CURDIR)/kernels" $(SITE)/fastcodec/kernels
	@ln -s "$(CURDIR)/bench" $(SITE)/bench

clean:  ## remove what was built and cached
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache out
	find kernels fastcodec tests bench \( -name __pycache__ -o -name build \) -type d -prune -exec rm -rf {} +
	find kernels fastcodec \( -name '*.so' -o -name '*.fatbin' \) -delete

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

$(VENV)/venv.stamp: pyproject.toml setup.py constraints.txt
	@echo 'Setting up $(VENV): a few minutes the first time'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastcodec needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools ninja
	$(PIP) --no-build-isolation --editable '.[test,lint,docs,demo]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/venv.stamp
	$(PIP) --no-build-isolation --editable '.[bench]'
	$(PIP) --no-deps compressai
	@touch $@
