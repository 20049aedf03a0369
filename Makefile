# make reproduce   the paper's tables, from nothing      make test   is it in order?
# PYTHON=python3.12 selects the interpreter, VENV= another folder, PROFILE=smoke|quick|paper how much is run.

SHELL   := /bin/bash
VENV    ?= .venv
PROFILE ?= quick
ARGS    ?=
# Of the tests: one more than the cores of a small machine, since many of them wait for processes. Raise it on a larger one.
WORKERS ?= 3
ifndef PYTHON
PYTHON  := $(firstword $(foreach p,python3 python3.12 python3.11 python,$(shell $(p) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $(p))) python3)
endif

BIN      = $(VENV)/bin
CARRIERS = $(VENV)/share/dualppo/carriers
PIP      = $(BIN)/python -m pip --disable-pip-version-check -qq
# Every file is checked by its sha256. The locks are complete, so nothing is asked for beside them; what torch's CUDA build
# needs is installed where pip check misses it.
# Two keys: another Python, other pins, or a moved folder (whose scripts would point nowhere) make the environment anew;
# other project settings only install the project again, which takes seconds.
PINS    := $(shell { pwd; $(PYTHON) -c 'import sys; print(sys.version_info[:2])'; cat requirements*.lock; } 2>/dev/null | cksum | tr ' ' '-')
SELF    := $(shell cat settings.ini setup.py pyproject.toml | cksum | tr ' ' '-')
STAMP    = $(VENV)/.stamp-$(PINS)
SITED    = $(VENV)/.sited-$(PINS)-$(shell cksum < docs/site/requirements.txt | tr ' ' '-')

.PHONY: help env lint test test-ci test-all reproduce bench readme docs lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

OK      := $(shell $(PYTHON) -c 'import sys; print(sys.version_info[:2] in ((3, 11), (3, 12)))' 2>/dev/null)
IS      := $(shell $(PYTHON) -c 'import platform; print("Python", platform.python_version())' 2>/dev/null || echo not a Python interpreter)
right-python = $(if $(filter True,$(OK)),,$(error dualppo needs Python 3.11 or 3.12, but '$(PYTHON)' is $(IS): run make again with PYTHON=/path/to/python3.11))

$(STAMP):
	$(right-python)
	@echo "Making $(VENV) with $$($(PYTHON) --version); the first time takes a few minutes and about 2 GB."
	@rm -rf $(VENV)/.stamp-* && $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip check > /dev/null || $(PIP) install --require-hashes --no-deps -r requirements-cuda.lock
	@$(PIP) download --require-hashes --no-deps -d $(CARRIERS) -r requirements-carriers.lock
	@touch $@

$(STAMP)-$(SELF): $(STAMP)
	@rm -f $(STAMP)-*
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

env: $(STAMP)-$(SELF)  ## make .venv with the exact versions of requirements.lock

reproduce: env  ## run the main job and print the paper's tables beside yours
	@$(BIN)/dualppo reproduce --profile $(PROFILE) $(ARGS)

# The export is checked in a copy: nothing here writes into the tree.
lint: env  ## style, types, arrows, and is the package what the notebooks export?
	@$(BIN)/ruff check .
	@$(BIN)/mypy --no-error-summary
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/lint-imports --no-cache --no-logo > /dev/null || $(BIN)/lint-imports --no-cache
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q tests/test_project.py::test_modules_are_exactly_what_the_notebooks_export

# Notebooks about records (nbs/papers) are executed by tests/test_shown.py, which compares what they show.
TESTENV = PATH="$(abspath $(BIN)):$$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

test: lint  ## notebooks and tests but those that take long (ARGS='-k name' narrows the tests)
	@$(TESTENV) $(BIN)/python tools/notebooks.py --workers $(WORKERS) --which quick
	@$(TESTENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not ci" $(ARGS)

test-ci: test  ## and what takes longer, notebooks about records too: what CI runs
	@$(TESTENV) $(BIN)/python tools/notebooks.py --workers $(WORKERS) --which long
	@$(TESTENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m "ci and not slow" $(ARGS)

# The slowest first, so that no worker waits for them at the end.
test-all: test-ci  ## and the slowest tests: what a release, and a change of runs, files or the command line, needs
	@$(TESTENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m slow $(ARGS)

bench: env  ## speed, scale, encoding, pictures, MOLMA, writing (about half an hour; leave the machine alone meanwhile)
	@for name in speed scale encoding pictures molma writing report; do HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done

readme: env  ## write what is generated: tables in README.md and RESULTS.md, docs/cards, llms.txt
	@for name in readme cards llms; do $(BIN)/python tools/$$name.py || exit 1; done

$(SITED): $(STAMP)-$(SELF)
	@rm -f $(VENV)/.sited-*
	@$(PIP) install --require-hashes --no-deps -r docs/site/requirements.txt
	@touch $@

docs: env $(SITED)  ## the site in _docs: notebooks, library, methods, results (open _docs/index.html)
	@$(BIN)/python tools/docs.py

lock:  ## pin what settings.ini asks for (ARGS=--upgrade: in its newest versions)
	$(right-python)
	@$(PYTHON) tools/lock.py $(ARGS)

clean:  ## remove what was built, keep outputs/
	rm -rf $(VENV) _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
