# Everything happens in .venv; each target may be repeated and installs only what changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
MODELS := $(patsubst %/pyproject.toml,%,$(wildcard models/*/pyproject.toml))
# The one that declares the entry point `default`.
MODEL  := $(patsubst %/pyproject.toml,%,$(shell grep -l '^default = ' models/*/pyproject.toml))
GPU_VENV := .venv-gpu

.PHONY: demo test test-all check plugins prove-gpu clean

# A short street clip is rendered, then segmented with the default model.
demo: $(VENV)/.installed-demo
	@mkdir -p demo
	$(BIN)/python -m dovit_scenes demo/street.mp4 --frames 90 --seed 7 --size 640x360 --fps 15 --overwrite
	$(BIN)/dovit run demo/street.mp4 -o demo/result --save overlay,tokens,report --overwrite
	@echo "open demo/result/report.html in a browser; the videos beside it are overlay.mp4 and tokens.mp4"

# The default tests: a few minutes on two cores.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2

# Every golden case, more random cases, fresh environments and long runs, and the catalogue of mutants.
test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 -m "exhaustive or mutants or slow"

# Formatting, lint and types.
check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The CUDA kernels and, with TENSORRT_INCLUDE=/path/to/TensorRT/include, the TensorRT plugins around them (needs nvcc).
plugins:
	$(MAKE) -C csrc plugins $(if $(TENSORRT_INCLUDE),TENSORRT_INCLUDE=$(abspath $(TENSORRT_INCLUDE)))

# On a machine with an NVIDIA GPU: kernels, plugins, memory, stages against dense, engines and parity, in ten minutes (once
# installed); the tables of docs/benchmarks.md are written from the result. Without one the self-test runs. It has an
# environment of its own: onnxruntime-gpu and the onnxruntime of `cpu` and `export` exclude each other. TENSORRT_INCLUDE
# as for `make plugins`.
prove-gpu: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python benchmarks/gpu/prove.py --minutes 10 -o benchmarks/results/gpu.json --docs docs/benchmarks.md

$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]' torch onnx onnxscript onnx-ir pyyaml pytest 'cuda-bindings>=13'
	-$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[tensorrt-rtx]'
	-$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[pycuda]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(BIN)/python pyproject.toml $(MODEL)/pyproject.toml $(wildcard $(MODEL)/*/*.dovit/manifest.json)
	# OpenVINO has no wheels for some machines; the demo runs without it.
	$(PIP) -e '.[cpu,video,openvino,report]' || $(PIP) -e '.[cpu,video,report]'
	$(PIP) --force-reinstall --no-deps ./$(MODEL)
	# Of another model that is there too, an old version may call itself the default.
	@for model in $(notdir $(filter-out $(MODEL),$(MODELS))); do \
		if $(BIN)/pip show --quiet dovit-model-$$model 2>/dev/null; then \
			$(PIP) --force-reinstall --no-deps ./models/$$model || exit 1; \
		fi; \
	done
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-demo requirements-dev.txt constraints.txt
	$(PIP) -c constraints.txt -e '.[cpu,video,openvino,export,report,triton]' -r requirements-dev.txt
	# Without what it asks for: torchvision wants another build of PyTorch, and timm's vision transformers do without it.
	$(PIP) --no-deps 'timm>=1.0.20'
	# NVIDIA Triton's server. Its wrapper, which is not used, asks for NumPy 1. Where there is no wheel (glibc before 2.35,
	# not x86_64), the tests that need a server are skipped with the reason.
	-$(PIP) --no-deps 'nvidia-pytriton>=0.7'
	@touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) demo
