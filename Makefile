# Everything runs in .venv, which is made on first use and renewed when the dependencies change.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
COMPILED := $(VENV)/compiled

# The repository root must never be on sys.path: its folder `kernels` would shadow the PyPI package of that name.
export PYTHONSAFEPATH := 1

.PHONY: help demo publish test check lint format install clean
help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

demo: $(INSTALLED) $(COMPILED)  ## Train a small MoE model, place its experts, compile it, run it on four processes
	$(BIN)/python examples/demo/run_demo.py --work demo

publish: $(INSTALLED)  ## Record the last demo's result in benchmarks/results and the README
	$(BIN)/python benchmarks/publish_demo.py --work demo

test: $(INSTALLED) $(COMPILED)  ## Run all tests (CPU only)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint test  ## ruff, mypy strict, pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)  ## Make the environment

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "specmoe needs Python 3.11 or newer; none was found on the PATH"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# numba keeps machine code until the function's own file changes, with the code of all that it calls inside.
$(COMPILED): $(shell grep -rl --include='*.py' '^@compiled' kernels placement profiler runtime) | $(INSTALLED)
	find kernels placement profiler runtime -name '*.nb[ci]' -delete
	touch $@

clean:  ## Remove what the demo, the tests and the builds left (the environment too)
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
