# Two commands for a fresh machine with Python 3.11+, a C++ compiler and make:
#   make demo   install the lean runtime, then a drawn person talks -> build/demo/demo.mp4 and demo.png
#   make test   install everything, then run the tests
# And one for a machine with an NVIDIA GPU, in a Python that has torch with CUDA and this package:
#   make gpu-check   kernels, loop, engines, numbers and speed on this GPU -> bench/results/gpu/check_<GPU>.md and .json
#                    (OUT=DIR writes them elsewhere; ARGUMENTS="--compile --bundle full.bundle" asks for more,
#                    ARGUMENTS="--seconds 400 --only golden,speed" for less)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
OUT ?= bench/results/gpu
LEAN := $(VENV)/.lean
SETUP := $(VENV)/.setup
NATIVE := $(wildcard runtime/native/*)
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: setup demo wheel-demo test gpu-check clean

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

# The wheel as a user installs it, where no PyTorch is.
wheel-demo:
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --constraint constraints.txt .
	! build/wheel/bin/python -c "import torch" 2>/dev/null
	cd build/wheel && bin/vexpress demo --quiet --output_path demo.mp4

test: $(SETUP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

gpu-check:
	$(PYTHON) -m vexpress_trt.bench.gpu_check --out build/gpu_check --results $(OUT) $(ARGUMENTS)

clean:
	rm -rf build
