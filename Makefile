# Two commands matter: `make reproduce` and `make test`. Both install what they need into .venv first.

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
# More options for pip, for instance an extra index with CPU-only wheels of torch.
PIP_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed.stamp
DOCS := $(VENV)/.docs.stamp

# The work is many small problems: processes share the cores, the linear algebra inside each stays on one.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install reproduce test test-slow lint format bench finetune-demo docs html clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv and install the project into it (again only when its dependencies change)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[test,studies]"
	@touch $@

reproduce: $(STAMP) ## run every study at its quick size and write tables, figures and verdicts to results/
	$(BIN)/python -m studies run --all --quick --jobs $(JOBS) --out results

test: $(STAMP) ## run the tests, without the slow ones
	$(BIN)/python -m pytest -q -n $(JOBS)

test-slow: $(STAMP) ## run only the slow tests
	$(BIN)/python -m pytest -q -n $(JOBS) -m "slow and not gpu"

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## time the core against its peers, as ratios
	$(BIN)/python benchmarks/core.py

finetune-demo: $(STAMP) ## fine-tune a pretrained encoder with LoRA, PoLAR and RefLoRA; results/finetune-demo
	$(BIN)/python -m llm_bridge.demo --jobs $(JOBS)

docs: $(STAMP) ## regenerate docs/coverage.md and docs/variants.md from the code, the tests and the studies
	$(BIN)/python docs/make_coverage.py
	$(BIN)/python docs/make_variants.py

html: $(DOCS) ## build the pages and the API reference; open docs/_build/html/index.html
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs -d docs/_build/doctrees . docs/_build/html

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[docs]"
	@touch $@

clean: ## remove what was built, and keep .venv
	rm -rf results build dist docs/_build docs/reference/generated *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
