# make demo: corrupt a photograph, train on digits, sample.   make test: run the tests.   make figures: the README's pictures.
# make lint, make types: what the tests do not check (style, spelling, whether the installed packages fit, what the index is told; types).
# Both make their own environment in .venv first; VENV=folder puts it elsewhere, PYTHON=python3.12 picks the interpreter.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
DEMO := runs/demo

FIGURES := assets/figures

.PHONY: demo test lint types docs figures gallery evidence kernels cuda clean

demo: $(VENV)/.installed
	$(PY) -m cli.corrupt --video
	$(PY) -m cli.train --out $(DEMO)
	$(PY) -m cli.sample $(DEMO) --video
	@printf '\nLook at:\n'
	@printf '  %s\n' outputs/chelsea/strip.png outputs/chelsea/velocity.png outputs/chelsea/trajectory.mp4 \
		outputs/demo-samples/grid.png outputs/demo-samples/reverse.mp4

# Two processes of one thread each: half the time of one process on two cores.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib
	$(PY) -m pip check
	$(PY) -m pyroma --min 9 .

types: $(VENV)/.installed
	$(PY) -m mypy

# The documentation, in site/: open site/index.html. A warning or a dead link is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --site-dir site

# One page with every process, its pictures, film, equation and code.
gallery: $(VENV)/.installed
	$(PY) -m tools.gallery

figures: $(VENV)/.installed
	$(PY) -m cli.corrupt --out outputs/figures/corrupt
	$(PY) -m cli.compare --out outputs/figures/compare
	$(PY) -m cli.sample --out outputs/figures/sample
	$(PY) -m cli.sample --model fashion --label all --num 40 --out outputs/figures/fashion
	$(PY) -m cli.sample --model emoji --label all --num 36 --guidance 1.5 --out outputs/figures/emoji
	$(PY) -m cli.restore --out outputs/figures/restore
	$(PY) -m cli.benchmark operator --sizes 64 128 256 512 --batches 1 --no-slow --plot outputs/figures/cost.png
	$(PY) examples/medium.py --out $(FIGURES)/medium.jpg
	$(PY) -m tools.optics --out $(FIGURES)
	BEYOND_BLUR_FIGURES=$(abspath $(FIGURES)) $(PY) -m pytest tests/test_explore_page.py -k figure
	cp outputs/figures/corrupt/strip.png $(FIGURES)/corruption.png
	cp outputs/figures/corrupt/velocity.png outputs/figures/cost.png $(FIGURES)
	cp outputs/figures/sample/grid.png $(FIGURES)/digits.png
	cp outputs/figures/fashion/grid.png $(FIGURES)/fashion.png
	cp outputs/figures/emoji/grid.png $(FIGURES)/emoji.png
	cp outputs/figures/restore/restoration.png $(FIGURES)
	# Noise makes a large PNG.
	$(PY) -c "from PIL import Image; Image.open('outputs/figures/compare/comparison.png').convert('RGB').save('$(FIGURES)/comparison.jpg', quality=85)"

evidence: $(VENV)/.installed
	$(PY) -m tools.evidence --jobs 2

# Registers and instructions of the CUDA kernels, from their binaries: needs no GPU.
kernels: $(VENV)/.installed
	$(PY) -m cli.benchmark kernels

# For a machine with a GPU: tests, speed, training and sampling on it, in one report.
cuda: $(VENV)/.installed
	$(PY) -m tools.device --out cuda-report.md

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv outputs site $(DEMO)
