# The commands of this project, the same for a person and for CI. `make` alone lists them.
#
#   PYTHON=…   interpreter for a new environment (3.11 or newer)
#   VENV=…     where the environment lies
#   ARGS=…     passed on: make demo ARGS="--seed 2", make test ARGS="-k shards"

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# On all cores up to eight, the tests of a file in one process: what they share is made once. In the order of
# tests/conftest.py: xdist would begin with the files of most tests, and end with those that take minutes each.
SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# What the demo needs, what the tests need besides, and what the tests of the web page need besides.
DEMO_EXTRAS := synth,export,report
DEV_EXTRAS := $(DEMO_EXTRAS),ray,hf,onnx-teacher,numbers,dev
WEB_EXTRAS := $(DEV_EXTRAS),dev-web
DEMO := $(VENV)/.demo-installed
DEV := $(VENV)/.dev-installed
WEB := $(VENV)/.web-installed

# glibc gives large temporaries back to the kernel and asks for them again: a page fault for every
# 4 KiB of every batch of features. Keeping them makes log-mel up to four times faster.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

# Container images often set it: every process would then compile torch's modules anew, for five seconds. The
# first to import a module keeps it compiled instead, which is also why the installation compiles nothing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check format test-device test-executorch test-gpu test-pretended constraints clean

help:
	@echo "make demo         the whole pipeline: teacher, soft labels, streaming student, export"
	@echo "make test         all tests but those that need a browser, ExecuTorch or a GPU"
	@echo "make check        format, lint, types, import order and the fast tests"
	@echo "make format       let ruff fix the formatting"
	@echo "make test-device  the tests that need Chromium and Node.js: the web page, sherpa-onnx's npm build"
	@echo "make test-executorch  the tests of the ExecuTorch export, in a separate environment"
	@echo "make test-gpu     the tests that need an accelerator, with the interpreter \$$GPU_PYTHON"
	@echo "make test-pretended  the same on a simulated device: finds tensors that were not moved to it"
	@echo "make constraints  regenerate constraints.txt and constraints-executorch.txt from the bounds in pyproject.toml"
	@echo "make clean        remove the environment and caches, but not runs/"

setup: $(DEV)

# In one go, and without compiling: most modules are never imported.
define install
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kdasr needs Python 3.11 or newer, but $(PYTHON) is %d.%d. Name another interpreter: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "Installing into $(VENV) (one to two minutes and 2 GB with the CPU build of torch; builds for CUDA take several times that)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(DEMO) $(DEV) $(WEB): pyproject.toml constraints.txt

$(DEMO):
	$(call install,$(DEMO_EXTRAS))
	@touch $@

$(DEV):
	$(call install,$(DEV_EXTRAS))
	@touch $(DEMO) $@

$(WEB):
	$(call install,$(WEB_EXTRAS))
	@touch $(DEMO) $(DEV) $@

demo: $(DEMO)
	$(BIN)/kdasr run recipes/mini $(ARGS)

test: $(DEV)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not web and not executorch and not gpu" $(ARGS)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow and not web and not executorch and not gpu" $(ARGS)

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Chromium and Node.js come from the system (apt-get install chromium nodejs npm); npm packages are
# fetched when first needed and kept in the user's cache folder.
test-device: $(WEB)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m web $(ARGS)

# ExecuTorch wants some packages in other versions than the rest.
test-executorch:
	$(PYTHON) -m venv build/executorch
	build/executorch/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-executorch.txt -e '.[export,executorch]' pytest pytest-timeout
	build/executorch/bin/python -m pytest -m executorch $(ARGS) tests/export

# Machines with an accelerator bring their own torch, so no environment is made for this; and the files
# are named, since others import what such a machine may lack.
GPU_PYTHON ?= python3
test-gpu:
	$(GPU_PYTHON) -m pytest -m gpu $(ARGS) $$(grep -rl "mark\.gpu" tests)

# Where there is no accelerator: a C++ compiler makes one that is pretended, in half a minute.
test-pretended: $(DEV)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -p tests.pretended -m gpu $(ARGS) $$(grep -rl "mark\.gpu" tests)

constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet -e '.[synth,export,report,ray,hf,onnx-teacher,numbers,mic,cloud,dev,dev-web]'
	sed -n '/^#/p' constraints.txt > build/constraints.txt
	build/constraints/bin/python -m pip freeze --all --exclude-editable --exclude pip \
		| sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	grep -v '^antlr4-' constraints.txt > build/constraints/base.txt
	build/constraints/bin/python -m pip install --quiet -c build/constraints/base.txt \
		-e '.[export,executorch]' pytest pytest-timeout
	sed -n '/^#/p' constraints-executorch.txt > build/constraints.txt
	build/constraints/bin/python -m pip freeze --all --exclude-editable --exclude pip \
		| sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f >> build/constraints.txt
	mv build/constraints.txt constraints-executorch.txt
	rm -rf build/constraints

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
