# One command from a fresh machine: `make demo` trains, `make test` checks. `make help` lists the rest.
# Needs Python 3.10 to 3.14 and a C++ compiler; everything is installed into $(VENV), once.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo gallery test test-oldest test-newest test-fast run-tests coverage lint bench docs clean

# Which versions of torch and transformers: the default, for which the wheel with compiled ops exists, or both ends of the
# ranges in requirements/. Each has a virtual environment of its own.
STACK := default
ifeq ($(filter default oldest newest,$(STACK)),)
$(error STACK is '$(STACK)'; it can be default, oldest or newest)
endif
VENV_default := .venv
TORCH_default := torch==2.12.1 torchvision==0.27.1
TRANSFORMERS_default := 'transformers>=5,<6'
VENV_oldest := .venv-oldest
TORCH_oldest := torch==2.8.0 torchvision==0.23.0
TRANSFORMERS_oldest := 'transformers>=4.57,<4.58'
VENV_newest := .venv-newest
TORCH_newest := 'torch>=2.13,<2.16' torchvision
TRANSFORMERS_newest := 'transformers>=5,<6'

VENV ?= $(VENV_$(STACK))
TORCH := $(TORCH_$(STACK))
TRANSFORMERS := $(TRANSFORMERS_$(STACK))
# Files or folders of tests; empty: all.
TESTS ?=
# Processes that share the tests, a file at a time; more than there are cores bring nothing.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
DEMO_CONFIG := configs/mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py
DEMO_DIR := work_dirs/demo
# Every benchmark that is a program and serves a CPU; the others need a GPU or trl, or are modules that these share.
BENCH = $(filter-out %/gpu_suite.py %/large_steps.py %/peers.py,$(shell grep -l __main__ tools/benchmarks/*.py))

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
# A stamp is written after its install has succeeded, so an interrupted install is done again. A stamp that names versions
# replaces those of other versions, so going back to these installs them again.
STAMPS := $(VENV)/.stamps
VENV_DONE := $(STAMPS)/venv
as_name = $(subst $() ,_,$(subst ',,$(subst <,-below-,$(subst >=,-from-,$(subst ==,-,$(subst $(comma),,$(1)))))))
comma := ,
TORCH_DONE := $(STAMPS)/$(call as_name,$(TORCH))
RUNTIME_DONE := $(STAMPS)/runtime
TESTS_DONE := $(STAMPS)/tests-$(call as_name,$(TRANSFORMERS))
DOCS_DONE := $(STAMPS)/docs
# Optional: a folder with a wheel of onedl-mmcv that holds compiled ops, for CPython 3.11, Linux x86_64 and the default
# torch. It spares a build of 20 minutes. Without it, detectors that need these ops are skipped by the tests.
WHEELS ?= ../shared/wheels
OPS_WHEEL := $(if $(filter default,$(STACK)),$(firstword $(wildcard $(WHEELS)/onedl_mmcv-*-cp311-*.whl)))
OPS_DONE := $(if $(OPS_WHEEL),$(STAMPS)/$(notdir $(OPS_WHEEL)))

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo 'PYTHON=/path/to/python chooses the interpreter, VENV=folder the virtual environment,'
	@echo "TESTS='tests/test_models ...' the tests, WORKERS=4 the number of processes that run them."

demo: $(RUNTIME_DONE) ## train a small ViT with MergeMix on handwritten digits (CPU, < 5 minutes after the install)
	$(PY) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	@$(PY) tools/analysis_tools/summarize_run.py $(DEMO_DIR)

gallery: $(TESTS_DONE) $(OPS_DONE) ## train the tiny config of every method and show them on one page (CPU, about 25 minutes)
	$(PY) tools/gallery/build_gallery.py

test: lint run-tests ## lint, then all tests: newest transformers 5, torch 2.12.1 (about 12 minutes on two idle cores)

test-oldest: ## all tests on the oldest versions, transformers 4.57 and torch 2.8, in .venv-oldest
	@$(MAKE) --no-print-directory run-tests STACK=oldest

test-newest: ## all tests on the newest versions that install, in .venv-newest
	@$(MAKE) --no-print-directory run-tests STACK=newest

run-tests: $(TESTS_DONE) $(OPS_DONE)
	$(PYTEST) $(TESTS)

test-fast: $(TESTS_DONE) $(OPS_DONE) ## the tests that train nothing and start no programs (under 4 minutes)
	$(PYTEST) -m 'not slow' $(TESTS)

coverage: $(TESTS_DONE) $(OPS_DONE) ## the fast tests, and which lines of the package they run
	$(PYTEST) -m 'not slow' --cov --cov-report=term:skip-covered --cov-report=xml:coverage.xml $(TESTS)

lint: $(TESTS_DONE) ## formatting, ruff's rules, types (mypy) and spelling
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m codespell_lib

bench: $(TESTS_DONE) ## the tables of docs/benchmarks that need no GPU
	@for script in $(BENCH); do echo "==> $$script"; $(PY) $$script; done

# The source folder is the repository: docs/conf.py says why.
docs: $(DOCS_DONE) ## the documentation as a site, docs/_build/html/index.html
	$(PY) -m sphinx -q -E -W --keep-going -b html -c docs . docs/_build/html
	@echo 'docs/_build/html/index.html'

clean: ## remove caches, builds and the demo's results; the virtual environment stays
	rm -rf build dist docs/_build htmlcov coverage.xml .coverage* *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis $(DEMO_DIR)
	find . -path './.venv*' -prune -o -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# A name on the PATH may be a shim that cannot run, or a Python without venv: each candidate is tried. 3.11 comes first
# because the wheel with compiled ops is for it. A virtual environment that works is kept.
$(VENV_DONE):
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.10 python3.13 python3.14 python3 python); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo 'make: no Python 3.10 to 3.14 with the venv module was found (tried: $(or $(PYTHON),python3.10 to python3.14 and python3)).'; \
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
	@echo "==> installing $(TORCH): about 2 minutes"
	@rm -f $(STAMPS)/torch-*
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

TESTS_REQUIREMENTS := $(foreach name,optional detection quantization puzzlemix docs tests,requirements/$(name).txt)
$(TESTS_DONE): $(TESTS_REQUIREMENTS) $(RUNTIME_DONE)
	@echo '==> installing the test requirements'
	@rm -f $(STAMPS)/tests-*
	$(PIP) install $(TORCH) $(TRANSFORMERS) $(addprefix -r ,$(TESTS_REQUIREMENTS))
	@touch $@

$(DOCS_DONE): requirements/docs.txt $(RUNTIME_DONE)
	@echo '==> installing the requirements of the documentation'
	$(PIP) install $(TORCH) -r requirements/docs.txt
	@touch $@

$(STAMPS)/onedl_mmcv-%.whl: $(WHEELS)/onedl_mmcv-%.whl $(TESTS_DONE)
	@if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && [ "$$(uname -sm)" = 'Linux x86_64' ]; then \
	  echo '==> installing onedl-mmcv with compiled ops from $(WHEELS)'; \
	  $(PIP) install --force-reinstall --no-deps $<; \
	fi
	@touch $@
