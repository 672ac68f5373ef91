# Two commands for a fresh machine with Python 3.11+, a C++ compiler and make:
#   make demo   set up, then portrait photo + speech -> build/demo/demo.mp4
#   make test   set up, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
SETUP := $(VENV)/.setup
NATIVE := $(wildcard runtime/native/*)

.PHONY: setup demo test clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,test]'
	touch $@

$(DEMO)/tiny.bundle/manifest.json: $(SETUP)
	$(BIN)/vexpress export --random tiny --bundle $(DEMO)/tiny.bundle --precision fp32 --image_width 256 --image_height 256 --force

demo: $(DEMO)/tiny.bundle/manifest.json
	$(BIN)/vexpress generate --bundle $(DEMO)/tiny.bundle --reference_image_path models/demo/portrait.jpg \
	  --audio_path models/demo/speech.flac --output_path $(DEMO)/demo.mp4 --num_inference_steps 8
	@echo "The model is random, so the picture is coloured noise: the video is $(DEMO)/demo.mp4"

test: $(SETUP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

clean:
	rm -rf build
