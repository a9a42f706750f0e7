# make demo: corrupt a photograph, train on digits, sample.   make test: run the tests.   make figures: the README's pictures.
# Both make their own environment in .venv first; VENV=folder puts it elsewhere, PYTHON=python3.12 picks the interpreter.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
DEMO := runs/demo

FIGURES := assets/figures

.PHONY: demo test lint figures evidence clean

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

figures: $(VENV)/.installed
	$(PY) -m cli.corrupt --out outputs/figures/corrupt
	$(PY) -m cli.compare --out outputs/figures/compare
	$(PY) -m cli.sample --out outputs/figures/sample
	$(PY) -m cli.benchmark operator --sizes 64 128 256 512 --batches 1 --no-slow --plot outputs/figures/cost.png
	cp outputs/figures/corrupt/strip.png $(FIGURES)/corruption.png
	cp outputs/figures/corrupt/velocity.png outputs/figures/cost.png $(FIGURES)
	cp outputs/figures/sample/grid.png $(FIGURES)/digits.png
	# Noise makes a large PNG.
	$(PY) -c "from PIL import Image; Image.open('outputs/figures/compare/comparison.png').convert('RGB').reduce(2).save('$(FIGURES)/comparison.jpg', quality=85)"

# Every process as its paper has it, at its own Peclet number; the blur of the family of ihd is half a side wide.
EVIDENCE := --seeds 5 --images 40000 --num 2694 --jobs 2
STEPWISE := $(EVIDENCE) --sigma-max 0.5

evidence: $(VENV)/.installed
	$(PY) -m cli.sweep --process fluid --peclet 0 4 $(EVIDENCE) --out sweeps/fluid
	$(PY) -m cli.sweep --process ddpm blurring edm --peclet 0 $(EVIDENCE) --out sweeps/others
	$(PY) -m cli.sweep --process soft --peclet 0 $(EVIDENCE) --learning-rate 2e-3 --out sweeps/soft
	$(PY) -m cli.sweep --process ihd --peclet 0 $(STEPWISE) --out sweeps/stepwise
	$(PY) -m cli.sweep --process beyond-blur beyond-blur-frozen structured-noise structured-noise-frozen --peclet 0.1 $(STEPWISE) --out sweeps/stepwise
	$(PY) -m cli.sweep --process beyond-blur-curl --peclet 2 $(STEPWISE) --out sweeps/stepwise
	$(PY) -m cli.sweep --process cold --peclet 0 $(EVIDENCE) --out sweeps/cold
	$(PY) -m cli.sweep --process fluid --peclet 4 --images 40000 --network-calls 10 20 40 --out sweeps/calls-fluid
	$(PY) -m cli.sweep --process ddpm edm --peclet 0 --images 40000 --network-calls 10 20 40 --out sweeps/calls-others

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv outputs $(DEMO)
