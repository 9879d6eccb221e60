# One virtual environment for everything. Nothing is rebuilt, and no network is touched, when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCATTER ?= 1
STAMP := $(VENV)/.installed
SCATTER_STAMP := $(VENV)/.scatter

.PHONY: setup demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train VBPR and VBPR+MRdIB on ml-100k, three seeds, side by side"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  speed against bare PyTorch loops, as ratios; writes benchmarks/results/"
	@echo "make setup  the environment in $(VENV) (done by all of the above); SCATTER=0 leaves torch-scatter out"

setup: $(STAMP) $(SCATTER_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing PyTorch"
	@$(BIN)/pip install --quiet --constraint constraints.txt torch
	@echo "== installing the rest"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[plot,report,tune,parquet,dev]'
	@touch $@

# Built from source against the installed PyTorch, hence without build isolation. Optional: its absence costs nothing but a warning.
$(SCATTER_STAMP): $(STAMP)
ifeq ($(SCATTER),0)
	@echo "== torch-scatter left out (SCATTER=0): the native PyTorch path is used"
else
	@if $(BIN)/python -c 'import torch_scatter' 2>/dev/null; then touch $@; else \
	  echo "== building torch-scatter (about five minutes; SCATTER=0 leaves it out)"; \
	  $(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation torch-scatter > $(VENV)/scatter.log 2>&1 & pid=$$!; \
	  while kill -0 $$pid 2>/dev/null; do printf '.'; sleep 5; done; echo; \
	  if wait $$pid; then echo "== torch-scatter built"; \
	  else echo "== WARNING: torch-scatter could not be built (see $(VENV)/scatter.log); the native PyTorch path is used"; fi; \
	  touch $@; fi
endif

demo: setup
	$(BIN)/python run_mrdib.py --model VBPR --dataset ml-100k --compare --seeds 1,2,3 --epochs=80 --quiet

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
