# make demo | make test | make torture | make results | make readme | make workflows | make badges | make export
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
META   := setup.py settings.ini pyproject.toml constraints.txt sesemi_fastai/__init__.py
README ?= README.md

.PHONY: demo test torture export results readme workflows badges clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11) and "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(META)
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/sesemi-demo --out demo

test: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" nbdev-test --n-workers 2
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Bad images, bad tables, random tables, and a run that is killed again and again; KILLS=100 for more
KILLS ?= 20
torture: $(VENV)/.installed-dev
	$(BIN)/python tests/torture.py $(KILLS)

export: $(VENV)/.installed-dev
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

# Notebooks of experiments and README, made anew from the records
results: $(VENV)/.installed-dev
	cd nbs/experiments && for nb in *.ipynb; do $(abspath $(BIN))/python -m nbconvert --log-level WARN --to notebook --execute --inplace $$nb; done
	$(BIN)/nbdev-clean
	$(MAKE) readme

# README.md is nbs/index.ipynb run from top to bottom, without the code cells
readme:
	@cd nbs && $(abspath $(BIN))/python -m nbconvert --log-level WARN --to markdown --execute --no-input --stdout index.ipynb \
	  | sed -E -e 's#\]\((images/|[0-9a-z_/]+\.ipynb)#](nbs/\1#g' -e 's#\]\(\.\./#](#g' | cat -s > $(abspath $(README)).new && mv $(abspath $(README)).new $(abspath $(README))

# WORKFLOWS.md is made from the tests
workflows:
	$(BIN)/python tests/workflows.py > WORKFLOWS.md

# Colab badges in the tutorials, from the address in settings.ini
badges:
	$(BIN)/python nbs/badges.py

clean:
	rm -rf $(VENV) demo build dist *.egg-info
