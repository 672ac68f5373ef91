# Two commands for a fresh machine with Python 3.11+, a C++ compiler and make:
#   make demo   install the lean runtime, then a drawn person talks -> build/demo/demo.mp4 and demo.png
#   make test   install everything, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
LEAN := $(VENV)/.lean
SETUP := $(VENV)/.setup
NATIVE := $(wildcard runtime/native/*)
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: setup demo test clean

setup: $(SETUP)

$(LEAN): pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) --editable .
	touch $@

$(SETUP): $(LEAN)
	$(PIP) --editable '.[export,test]'
	touch $@

demo: $(LEAN)
	$(BIN)/vexpress demo --output_path $(DEMO)/demo.mp4

test: $(SETUP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

clean:
	rm -rf build
