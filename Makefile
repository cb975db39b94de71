# One command from a fresh machine: `make demo` trains, `make test` checks. `make help` lists the rest.
# Needs Python >= 3.10 and a C++ compiler; everything is installed into $(VENV), once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo gallery test test-fast lint bench docs clean

VENV ?= .venv
TORCH := torch==2.12.1 torchvision==0.27.1
DEMO_CONFIG := configs/mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py
DEMO_DIR := work_dirs/demo
# Every benchmark that is a program; the others are modules that these share.
BENCH = $(shell grep -l __main__ tools/benchmarks/*.py)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
# A stamp is written after its install has succeeded, so an interrupted install is done again.
STAMPS := $(VENV)/.stamps
VENV_DONE := $(STAMPS)/venv
TORCH_DONE := $(STAMPS)/$(subst ==,-,$(subst $() ,_,$(TORCH)))
RUNTIME_DONE := $(STAMPS)/runtime
TESTS_DONE := $(STAMPS)/tests
DOCS_DONE := $(STAMPS)/docs
# The build of onedl-mmcv with C++ ops, where it lies beside the repository; nothing here depends on it.
OPS_WHEEL := $(firstword $(wildcard ../shared/wheels/onedl_mmcv-*-cp311-*.whl))
OPS_DONE := $(if $(OPS_WHEEL),$(STAMPS)/$(notdir $(OPS_WHEEL)))

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10
	@echo 'PYTHON=/path/to/python chooses the interpreter, VENV=folder the virtual environment.'

demo: $(RUNTIME_DONE) ## train a small ViT with MergeMix on handwritten digits (CPU, < 5 minutes after the install)
	$(PY) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	@$(PY) tools/analysis_tools/summarize_run.py $(DEMO_DIR)

gallery: $(TESTS_DONE) $(OPS_DONE) ## train the tiny config of every method and show them on one page (CPU, about 25 minutes)
	$(PY) tools/gallery/build_gallery.py

test: $(TESTS_DONE) $(OPS_DONE) ## lint, then all tests (under 15 minutes on an idle machine)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pytest -q

test-fast: $(TESTS_DONE) $(OPS_DONE) ## the tests that train nothing and start no programs (under 4 minutes)
	$(PY) -m pytest -q -m 'not slow'

lint: $(TESTS_DONE) ## formatting and ruff's rules
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

bench: $(TESTS_DONE) ## the tables of docs/benchmarks.md
	@for script in $(BENCH); do echo "==> $$script"; $(PY) $$script; done

# The source folder is the repository: docs/conf.py says why.
docs: $(DOCS_DONE) ## the documentation as a site, docs/_build/html/index.html
	$(PY) -m sphinx -q -E -W --keep-going -b html -c docs . docs/_build/html
	@echo 'docs/_build/html/index.html'

clean: ## remove caches, builds and the demo's results; the virtual environment stays
	rm -rf build dist docs/_build *.egg-info .pytest_cache .ruff_cache .hypothesis $(DEMO_DIR)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# A name on the PATH may be a shim that cannot run, or a Python without venv: each candidate is tried. 3.11 comes first
# because the shared wheel is for it. A virtual environment that works is kept.
$(VENV_DONE):
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.10 python3.13 python3 python); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo 'make: no Python >= 3.10 with the venv module was found ($(or $(PYTHON),python3.10 to python3.13)).'; \
	    echo 'Install one (Debian, Ubuntu: apt install python3 python3-venv python3-dev), or run: make PYTHON=/path/to/python'; \
	    exit 1; \
	  fi; \
	  echo "==> creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV); \
	fi
	@mkdir -p $(STAMPS)
	$(PIP) install 'setuptools>=77,<82' wheel
	@touch $@

$(TORCH_DONE): $(VENV_DONE)
	@echo '==> installing $(TORCH): about 2 minutes'
	$(PIP) install $(TORCH)
	@touch $@

# onedl-mmcv without pip's cache, which may hold a build for another torch under the same name and version. The last
# line gives machines without libGL the OpenCV that does not need it.
$(RUNTIME_DONE): requirements/runtime.txt setup.py pyproject.toml $(TORCH_DONE)
	@echo '==> installing the runtime requirements'
	$(PIP) install --no-cache-dir $(TORCH) $$(grep '^onedl-mmcv' requirements/runtime.txt)
	$(PIP) install $(TORCH) -r requirements/runtime.txt
	$(PIP) install --no-build-isolation --no-deps -e .
	@$(PY) -c 'import cv2' 2>/dev/null || $(PIP) install --force-reinstall --no-deps opencv-python-headless
	@touch $@

$(TESTS_DONE): requirements/tests.txt requirements/optional.txt requirements/detection.txt requirements/docs.txt $(RUNTIME_DONE)
	@echo '==> installing the test requirements'
	$(PIP) install $(TORCH) -r requirements/tests.txt
	@touch $@

$(DOCS_DONE): requirements/docs.txt $(RUNTIME_DONE)
	@echo '==> installing the requirements of the documentation'
	$(PIP) install $(TORCH) -r requirements/docs.txt
	@touch $@

$(STAMPS)/onedl_mmcv-%.whl: ../shared/wheels/onedl_mmcv-%.whl $(TESTS_DONE)
	@if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && [ "$$(uname -sm)" = 'Linux x86_64' ]; then \
	  echo '==> installing onedl-mmcv with C++ ops from ../shared/wheels'; \
	  $(PIP) install --force-reinstall --no-deps $<; \
	fi
	@touch $@
