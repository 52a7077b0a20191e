# Everything behind one word. `make demo` and `make test` do their own set-up on a fresh machine.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.behold-runtime
TESTING := $(VENV)/.behold-test
BROWSING := $(VENV)/.behold-browser
PEERS := $(VENV)/.behold-peers
INSTALL := $(BIN)/python -m pip install --progress-bar off -c constraints.txt
# pip's story in two lines: the packages as they are fetched, and when they are unpacked
BRIEFLY := awk '/^ *Collecting /{sub(/[^A-Za-z0-9_.-].*/, "", $$2); printf " %s", $$2; fflush()} /^Installing/{printf "\n   unpacking …"; fflush()} END{print ""}'
# A process for each core, up to 4 (each holds torch and transformers); a file's tests share its fixtures in one of them
SPREAD ?= -n logical --maxprocesses 4 --dist loadfile
# Many tests start behold anew: without its bytecode on disk each start would compile it again
unexport PYTHONDONTWRITEBYTECODE
PICTURE ?= examples/scene.png
QUESTION ?= What do we see in this image?

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser format bench bench-serve clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: $(RUNTIME)  ## ask the bundled checkpoint about a picture (installs what it needs)
	@echo '$$ behold ask --model demo $(PICTURE) "$(QUESTION)"'
	@$(BIN)/behold ask --model demo $(PICTURE) "$(QUESTION)"

test: $(TESTING)  ## lint, format check, types, tests with coverage (installs what it needs)
	@echo '== ruff check'
	@$(BIN)/ruff check .
	@echo '== ruff format --check'
	@$(BIN)/ruff format --check .
	@echo '== mypy'
	@$(BIN)/mypy
	@echo '== pytest'
	@$(BIN)/python -m pytest $(SPREAD) --cov --cov-report=term:skip-covered

test-browser: $(BROWSING)  ## the chat page in a headless Chromium (installs what it needs)
	@scripts/chromium --install >/dev/null
	@$(BIN)/python -m pytest tests/browser

format: $(TESTING)  ## let ruff fix and format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(PEERS)  ## behold, transformers and llama.cpp side by side (20 minutes, full-size shapes; ARGS=--help says more)
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-serve: $(TESTING)  ## many clients at once, beside transformers (long: full-size shapes, then a soak of the demo)
	@$(INSTALL) -q -e '.[bench]'
	@status=0; for work in '--model bench' '--model demo --case soak'; do $(BIN)/python -m benchmarks.serve $$work || status=1; done; exit $$status

clean:  ## remove the environment and everything that was built
	@rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo 'behold needs Python 3.10 or newer; "$(PYTHON)" was not found. Install it, or name yours: make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "behold needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	@echo '== making the environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): pyproject.toml setup.py constraints.txt $(wildcard src/behold/kernels/csrc/*) | $(BIN)/python
	@echo '== installing behold and what it runs on (once; the largest part is torch)'
	@$(INSTALL) -e . | $(BRIEFLY)
	@touch $@

$(TESTING): $(RUNTIME)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "the tests compare with transformers 5.23, which needs Python 3.11 or newer; $(VENV) is $$($(BIN)/python -V). Run: make clean test PYTHON=python3.12"; exit 1; }
	@echo '== installing what the tests need (once)'
	@$(INSTALL) -e '.[test]' | $(BRIEFLY)
	@touch $@

$(PEERS): $(TESTING)
	@echo '== installing the peers (once; llama.cpp is built for this machine, which takes about ten minutes)'
	@$(INSTALL) -q -e '.[bench]'
	@if CMAKE_ARGS=-DGGML_NATIVE=ON $(INSTALL) -q llama-cpp-python; then touch $@; else echo '== llama.cpp cannot be built here: its rows are left out'; fi

$(BROWSING): $(TESTING)
	@echo '== installing what drives the browser (once)'
	@$(INSTALL) -e '.[test,browser]' | $(BRIEFLY)
	@touch $@
