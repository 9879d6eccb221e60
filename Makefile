# One virtual environment for everything. Nothing is rebuilt, and no network is touched, when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCATTER_STAMP := $(VENV)/.scatter
DOCS_STAMP := $(VENV)/.docs

.PHONY: setup scatter demo test lint bench docs pictures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     plain VBPR, the paper's MRdIB and ours on ml-100k, side by side; ends with a page"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make bench    speed against bare PyTorch loops, as ratios; writes benchmarks/results/"
	@echo "make docs     the documentation: site/index.html"
	@echo "make pictures the README's pictures, of a board and a report on the demo (needs Chromium)"
	@echo "make scatter  build torch-scatter from source (minutes; optional: one reduction uses it where it is there)"
	@echo "make setup    the environment in $(VENV) (done by all of the above); PYTHON=python3.13 chooses the Python, 3.11 to 3.13"

setup: $(STAMP)
ifneq ($(origin PYTHON),file)  # given by the user: an environment that is there keeps the Python that it was made with
	@test "$$($(PYTHON) --version)" = "$$($(BIN)/python --version)" || { \
	  echo "$(VENV) was made with $$($(BIN)/python --version), not $$($(PYTHON) --version): 'make clean' first, or name another with VENV=FOLDER"; exit 1; }
endif

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing PyTorch"
	@$(BIN)/pip install --quiet --constraint constraints.txt torch
	@echo "== installing the rest"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[plot,report,tune,parquet,dev]'
	@touch $@

# Built from source against the installed PyTorch, hence without build isolation. Optional: its absence costs nothing but speed in one place.
scatter: $(SCATTER_STAMP)

$(SCATTER_STAMP): $(STAMP)
	@if $(BIN)/python -c 'import torch_scatter' 2>/dev/null; then touch $@; else \
	  echo "== building torch-scatter (about five minutes)"; \
	  $(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation torch-scatter > $(VENV)/scatter.log 2>&1 & pid=$$!; \
	  while kill -0 $$pid 2>/dev/null; do printf '.'; sleep 5; done; echo; \
	  if wait $$pid; then echo "== torch-scatter built"; \
	  else echo "== WARNING: torch-scatter could not be built (see $(VENV)/scatter.log); the native PyTorch path is used"; fi; \
	  touch $@; fi

demo: setup
	$(BIN)/mmrec-mrdib leaderboard --models VBPR --datasets ml-100k --variants plain,mrdib-paper,content,mrdib --seeds 3 \
	  --epochs=60 --learning_rate=0.005 --cold_items=0.1 --columns recall@20,ndcg@20,new:recall@20 --runs runs --output demo --jobs 2
	@echo "the page: demo/leaderboard.html"
	@echo "next:     $(BIN)/mmrec-mrdib explain runs/VBPR+MRdIB-ml-100k-1-* --user 42"

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.run

$(DOCS_STAMP): $(STAMP)
	@echo "== installing what the documentation is made with"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "the documentation: site/index.html"

pictures: demo
	$(BIN)/mmrec-mrdib report runs/VBPR-ml-100k-1-* runs/VBPR+MRdIB-ml-100k-1-* --output demo/report.html
	$(BIN)/python -m benchmarks.pictures demo/leaderboard.html=docs/board.png demo/report.html=docs/report.png

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache
