# Every target does its own set-up; the second call of each is quick.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

# The environment's tools first: DeepSpeed calls its neighbours (ninja, python) by their bare names.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: venv quickstart test lint clean
.DEFAULT_GOAL := venv

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: venv
	python train.py configs/quickstart.yaml

lint: venv
	ruff check .
	ruff format --check .
	mypy

# The suite keeps two processes busy with one thread each.
test: lint
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
