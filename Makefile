# `make demo` and `make test` need python3 (3.11 to 3.13) and make, nothing else. The first call
# makes a virtual environment and installs into it; later calls find its stamps and only run.
#   make test ARGS="-k weights"          arguments for the program that runs
#   make test PYTHON=python3.12          another Python, in an environment of its own
.DELETE_ON_ERROR:
.PHONY: help demo test lint format types docs clean

PYTHON ?= python3
VENV   ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip
INPUTS := setup.cfg pyproject.toml constraints.txt
ARGS   ?=

help:
	@echo 'make demo    train two VAEs on digits; print a table, write pictures'
	@echo 'make test    run the tests'
	@echo 'make lint    check style (make format mends it)'
	@echo 'make types   check types'
	@echo 'make docs    build the pages of docs/ into build/docs; a warning is an error'
	@echo 'make clean   remove what was built, the virtual environments too'

demo: $(VENV)/.bench
	$(BIN)/pyrovae demo $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Checkers cannot follow the editable mapping of folders to pyrovae.*, so they read an installed copy.
types: $(VENV)/.dev
	rm -rf build/types build/lib build/bdist.*
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/mypy --package pyrovae

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs $(ARGS)

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find benchmarks command docs inference models tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that whatever was interrupted is done again. `dev` holds `bench`.
$(VENV)/.bench: $(VENV)/.made $(INPUTS)
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	touch $@

$(VENV)/.dev: $(VENV)/.made $(INPUTS)
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/.bench $@

# An environment holds absolute paths: one that came along with a copied or moved checkout would run
# the other checkout's code. So the stamp names the folder it was made in. An environment that was
# made by hand is used as it is; one whose making was interrupted is made anew.
ifneq ($(shell cat '$(VENV)/.made' 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/.made
endif
$(VENV)/.made:
	@test ! -e $@ || { echo "$(VENV) was made in $$(cat $@), not here: run make clean" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "pyrovae needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test ! -e $(VENV)/.unfinished || rm -rf $(VENV)
	test -d $(VENV) || { mkdir $(VENV) && touch $(VENV)/.unfinished; }
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.unfinished
	echo '$(CURDIR)' > $@
