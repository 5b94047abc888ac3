# `make` alone lists the targets. Each installs what it needs into .venv first, so any of them is complete on a fresh machine.
PROFILE ?= mini
# The first of these that is here and starts.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13; do $$p -c '' 2>/dev/null && echo $$p && break; done),python3)
PIP_ARGS ?=
EXAMPLES ?= 10000
KILLS ?= 1000
SLIDES ?= notebooks/02_straight_through_gumbel.ipynb notebooks/03_vocabulary_matrix.ipynb

VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
PIP = $(VENV)/bin/python -m pip install --quiet --no-input --disable-pip-version-check $(PIP_ARGS)
# A pin, as pyproject.toml has it.
pin = "$$(sed -n 's/^ *"\($(1)==[^"]*\)".*/\1/p' pyproject.toml)"
PYTHON_FITS := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

.DEFAULT_GOAL := help
.PHONY: help setup reproduce compare test fuzz kills cluster browser slides versions mutants bench lint house clean FORCE

help:
	@echo 'make setup       install everything into .venv (a few minutes, about 2 GB), then say what is ready'
	@echo 'make reproduce   train, evaluate, draw the figures and run the notebooks; PROFILE=mini (default) or smoke'
	@echo 'make compare     the same training and scores with five seeds, all four systems beside each other'
	@echo 'make test        run the tests, and every notebook at smoke; TESTS=... (passed to pytest)'
	@echo 'make fuzz        the tests with random inputs, EXAMPLES=10000 of each (hours), or as many as you say'
	@echo 'make kills       kill a download 1,000 times, or KILLS=..., and training a tenth as often: nothing is lost'
	@echo 'make cluster     install Ray, and fetch photos on a cluster of two nodes on this machine'
	@echo 'make browser     the chat window in a real Chromium (apt install chromium), as a page and in JupyterLab'
	@echo 'make versions    the quick tests with each of Python 3.11, 3.12 and 3.13 that is on this machine; TESTS=...'
	@echo 'make slides      slides of notebooks 02 and 03 in build/slides; SLIDES=... for others'
	@echo 'make mutants     break the code in small ways, one at a time, and count what the tests notice; MUTANTS=...'
	@echo 'make bench       measure speed; BENCH=name for one benchmark'
	@echo 'make lint        check style, types and which module imports which'
	@echo 'make house       count lines, cycles and broken contracts'
	@echo 'make clean       remove what can be made again'
	@echo 'Variables: PROFILE=$(PROFILE)  PYTHON=$(PYTHON)  PIP_ARGS=... (passed to pip; an --extra-index-url can'
	@echo 'bring another build of torch)'

setup: $(STAMP)
	$(BIN)/e2e doctor

reproduce: $(STAMP)
	$(BIN)/e2e reproduce --profile $(PROFILE)

compare: $(STAMP)
	$(BIN)/e2e compare --profile $(PROFILE)

# One thread per worker, and one worker more than cores: some tests wait for processes of their own.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal $(TESTS)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=fuzz E2E_FUZZ_EXAMPLES=$(EXAMPLES) \
		$(BIN)/python -m pytest -q -n 2 -m fuzz $(TESTS)

kills: $(STAMP)
	OMP_NUM_THREADS=1 E2E_KILLS=$(KILLS) \
		$(BIN)/python -m pytest -q tests/download/test_photos.py tests/training/test_saving.py -k kills

cluster: $(STAMP)
	@$(PIP) --no-warn-conflicts --editable '.[cluster]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/download/test_cluster.py

browser: $(STAMP)
	@$(PIP) --no-warn-conflicts --editable '.[browser]'
	@npm install --silent --no-save --prefix $(VENV)/axe axe-core@4.14.1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser tests/window/test_browser.py

versions: $(STAMP)
	$(BIN)/python tests/versions.py $(TESTS)

slides: $(STAMP)
	$(BIN)/python -m nbconvert --to slides --no-input --output-dir build/slides --SlidesExporter.reveal_scroll=True \
		--SlidesExporter.preprocessors=e2e_lib.lessons.slides.SlideTypes $(SLIDES)

mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py $(MUTANTS)

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/run.py $(BENCH)

lint: $(STAMP)
	$(BIN)/python -m ruff check e2e_lib tests
	$(BIN)/python -m mypy e2e_lib
	$(BIN)/lint-imports --no-cache --no-logo

house: $(STAMP)
	$(BIN)/python tests/house.py

clean:
	rm -rf data runs results/smoke figures/smoke .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The paths of its folder are written into a virtual environment, so one that was moved or copied, lost its Python or
# was never finished is made anew; a sound one is kept, and pip changes only what differs from the pins.
SOUND := $(shell grep -Fqs "$(CURDIR)/$(VENV)/bin/" $(VENV)/bin/pip && $(VENV)/bin/python $(PYTHON_FITS) 2>/dev/null && echo yes)

define MAKE_VENV
$(PYTHON) $(PYTHON_FITS) 2>/dev/null || { echo 'Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is missing or is another version.' \
	'Install one of them, or say where it is: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }; \
echo 'Making a virtual environment in $(VENV)'; $(PYTHON) -m venv --clear $(VENV)
endef

$(STAMP): pyproject.toml Makefile $(if $(SOUND),,FORCE)
	@$(if $(SOUND),:,$(MAKE_VENV))
	@rm -f $@
	@echo 'Installing '$(call pin,torch)': up to several minutes, the largest download'
	@$(PIP) $(call pin,torch)
	@echo 'Installing '$(call pin,torch-fidelity)' and everything else in pyproject.toml: a few minutes more'
	@$(PIP) --no-deps $(call pin,torch-fidelity)
	@$(PIP) --no-warn-conflicts --editable '.[test]'
	@touch $@
