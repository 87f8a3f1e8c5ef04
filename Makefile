# The project's verbs. `make demo` and `make test` do all the set-up they need, on any machine with
# Python 3.11, gcc and make.
#
# All but torch comes from requirements/*.lock, with hashes. torch comes from pip's own index. Where that offers the CUDA build (gigabytes) and the CPU build
# is wanted, name the index of PyTorch's CPU wheels: make demo TORCH_INDEX=URL

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c "import venv" 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

# Folders that the package finds through links, which an sdist cannot hold.
LINKED := benchmarks export kernels

# The native operators: installing the package compiles them, for the checkout into its folder.
NATIVE := $(wildcard kernels/*/*.[ch])

BIN := $(VENV)/bin
PIP = $(1)/bin/python -m pip install --quiet --disable-pip-version-check
# One thread for each worker: two workers with two threads each would fight over two cores. A file's
# tests stay in one worker, so that its fixtures are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz check format test-contract test-lowest test-runtime wheel sdist lock \
	clean crash soak gpu-check gpu-wheelhouse serve-check triton-check
.DELETE_ON_ERROR:

help:
	@echo "make demo          export, verify and try the bundled model: build/demo/report.html"
	@echo "make test          all quick tests; at the end the slowest 20, in seconds of CPU time"
	@echo "make fuzz          an hour of damaged inputs for every reader: MINUTES=10 SEED=1"
	@echo "make check         linters and types"
	@echo "make test-contract the TensorRT code against the Python bindings of five versions"
	@echo "make test-lowest   the runtime's tests with the lowest supported versions"
	@echo "make test-runtime  the runtime's tests where torch, onnx and triton are not installed"
	@echo "make crash         kill and starve the commands at random; MINUTES=20 and SEED= can be set"
	@echo "make soak          20,000 predictions (PREDICTIONS=) in one process for each CPU backend"
	@echo "make serve-check   load the service, kill its workers, run its page in a headless Chromium"
	@echo "make triton-check  load Triton's model repository into the server's own core"
	@echo "make gpu-check     prove and time the operators and the model on this machine's card"
	@echo "make gpu-wheelhouse ARCH=sm_90   pack build/gpu for a card on a machine without a network"
	@echo "make format        rewrite the sources in the project's format"
	@echo "make wheel         build dist/*.whl; make sdist builds dist/*.tar.gz"
	@echo "make lock          renew requirements/*.lock and docs/licences.md"
	@echo "make clean         remove the environments and everything built"

demo: $(VENV)/.demo
	$(BIN)/uino-deploy demo -o build/demo --force

# For example: make fuzz MINUTES=10 SEED=1. tests/fuzz/README.md says what must hold.
SEED ?=
INPUTS ?= 100000
PARSERS ?=
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(PARSERS) --minutes $(or $(MINUTES),60) \
		--inputs $(INPUTS) $(if $(SEED),--seed $(SEED))

test: $(VENV)/.dev
	$(PYTEST) -p tests.cpu_times tests

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Downloads some 60 MB the first time: never TensorRT's libraries.
test-contract: $(VENV)/.dev
	$(BIN)/python -m tests.contract.environments

# tests/crash/README.md says what must hold, of both.
crash: $(VENV)/.dev
	$(BIN)/python -m tests.crash --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --predictions $(or $(PREDICTIONS),20000) -o build/soak.json

# docs/service.md says what must hold, of both. Playwright drives the machine's own Chromium.
SECONDS ?= 15
serve-check: $(VENV)/.dev build/demo/report.json
	@$(call PIP,$(VENV)) "playwright>=1.49"
	$(BIN)/python -m pytest -q -m slow --no-skips tests/serving/test_page.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.serving build/demo -o build/serving.json --seconds $(SECONDS)

# The wheel, of 55 MB, holds the server; its Python needs a shared libpython, and numpy below 2.
triton-check: $(VENV)/.dev $(VENV)-triton/.ready build/demo/report.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.serving.triton build/demo \
		--environment $(VENV)-triton -o build/triton.json

$(VENV)-triton/.ready:
	@$(PYTHON) -m venv --clear $(VENV)-triton
	@$(call PIP,$(VENV)-triton) --no-deps nvidia-pytriton==0.7.0
	@$(call PIP,$(VENV)-triton) "numpy<2" onnxruntime "tritonclient[http]"
	@touch $@

# tests/gpu/README.md says what they prove. A machine's own card, at most 10 minutes:
gpu-check: $(VENV)/.dev
	$(BIN)/python tests/gpu/wheelhouse.py build/gpu --here
	cd build/gpu && $(abspath $(BIN))/python -B first_light.py --out results

gpu-wheelhouse: $(VENV)/.dev
	$(BIN)/python tests/gpu/wheelhouse.py build/gpu --arch $(ARCH)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

sdist: $(VENV)/.dev
	$(BIN)/python -m build --sdist

# One lock for all supported versions of Python; test.lock holds what demo.lock lacks. Licences are
# those of the installed packages, so the new lock is installed before they are written.
COMPILE := $(VENV)-lock/bin/uv --quiet --config-file requirements/torch.toml pip compile \
	pyproject.toml --extra cpu --extra export --extra train --universal --python-version 3.10 \
	--generate-hashes --no-annotate --custom-compile-command "make lock" --no-emit-package torch

lock: | $(VENV)-lock/bin/uv
	$(COMPILE) --upgrade -o requirements/demo.lock
	$(COMPILE) --extra dev --constraint requirements/demo.lock -o requirements/test.lock \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements/demo.lock)
	$(MAKE) $(VENV)/.dev
	$(BIN)/python -m tests.test_locks

$(VENV)-lock/bin/uv:
	@$(PYTHON) -m venv $(VENV)-lock
	@$(call PIP,$(VENV)-lock) uv

clean:
	rm -rf $(VENV) $(VENV)-triton $(VENV)-runtime $(VENV)-lowest $(VENV)-lock build dist *.egg-info

$(VENV)/bin/python:
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# The locked packages first: torch then finds all it needs but a CUDA build's own libraries.
$(VENV)/.demo: pyproject.toml requirements/demo.lock $(NATIVE) | $(VENV)/bin/python
	@echo "installing what the demo needs and $(TORCH) (the longest step, a few minutes at most)"
	@for each in $(LINKED); do test -e uino_deploy/$$each || ln -s ../$$each uino_deploy/$$each; done
	@$(call PIP,$(VENV)) --require-hashes --no-deps --requirement requirements/demo.lock
	@$(call PIP,$(VENV)) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(call PIP,$(VENV)) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/test.lock
	@echo "installing what the tests need"
	@$(call PIP,$(VENV)) --require-hashes --no-deps --requirement requirements/test.lock
	@touch $@

# The runtime where nothing but its own dependencies and onnxruntime is installed.
RUNTIME_VENV := $(VENV)-runtime
LOWEST_VENV := $(VENV)-lowest
LOWEST_PYTHON ?= $(PYTHON)

test-runtime: $(RUNTIME_VENV)/.ready build/demo/report.json
	$(RUNTIME_VENV)/bin/python tests/runtime_alone.py build/demo

build/demo/report.json: | $(VENV)/.demo
	$(BIN)/uino-deploy demo -o build/demo --force

$(RUNTIME_VENV)/.ready: pyproject.toml $(NATIVE)
	@echo "making an environment with the runtime alone"
	@$(PYTHON) -m venv --clear $(RUNTIME_VENV)
	@$(call PIP,$(RUNTIME_VENV)) ".[cpu]"
	@touch $@

# onnx writes the small bundle that the runtime's tests run.
test-lowest: $(LOWEST_VENV)/.ready
	OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest -q tests/runtime tests/bundle tests/images \
		tests/test_files.py tests/test_doctor.py

$(LOWEST_VENV)/.ready: pyproject.toml tests/lowest.txt
	@echo "making an environment with the lowest supported versions"
	@$(LOWEST_PYTHON) -m venv --clear $(LOWEST_VENV)
	@$(call PIP,$(LOWEST_VENV)) --constraint tests/lowest.txt ".[cpu]" pytest hypothesis onnx
	@touch $@
