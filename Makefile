# make demo: corrupt a photograph, train on digits, sample.   make test: run the tests.
# Both make their own environment in .venv first; VENV=folder puts it elsewhere, PYTHON=python3.12 picks the interpreter.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
DEMO := runs/demo

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(PY) -m cli.corrupt --video
	$(PY) -m cli.train --out $(DEMO)
	$(PY) -m cli.sample $(DEMO) --video
	@printf '\nLook at:\n'
	@printf '  %s\n' outputs/chelsea/strip.png outputs/chelsea/velocity.png outputs/chelsea/trajectory.mp4 \
		outputs/demo-samples/grid.png outputs/demo-samples/reverse.mp4

test: $(VENV)/.installed
	$(PY) -m pytest

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv outputs $(DEMO)
