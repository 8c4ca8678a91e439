# Each target sets up what it needs; a second time that takes less than a second.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-input --root-user-action=ignore
export PIP_REQUIRE_VIRTUALENV := 1

.DEFAULT_GOAL := help
.PHONY: help demo test up lint format bench faults docs clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo '  options are passed on with ARGS, for example: make demo ARGS="--pack commerce --once"'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Perennial needs Python 3.11 or newer, and there is none on the PATH; install one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Perennial needs Python 3.11 or newer; $(PYTHON) is older" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); echo "'$(PYTHON) -m venv' does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# What `demo` and `up` need. The stamp is written last: a broken installation is done again.
$(VENV)/local.stamp: requirements-local.txt pyproject.toml | $(BIN)/python
	@echo "· installing Perennial into $(VENV) (once)" >&2
	@$(PIP) --require-hashes -r requirements-local.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/local.stamp | $(BIN)/python
	@echo "· installing the tools of tests and checks into $(VENV) (once)" >&2
	@$(PIP) --require-hashes -r requirements-dev.txt
	@touch $@

demo: $(VENV)/local.stamp ## the whole product on this machine, with phones and a push sandbox
	@exec $(BIN)/perennial demo $(ARGS)

up: $(VENV)/local.stamp ## the product on this machine, without phones
	@exec $(BIN)/perennial up $(ARGS)

test: $(VENV)/dev.stamp ## the whole test suite
	@exec $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp ## style, types and the borders between the parts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

format: $(VENV)/dev.stamp ## put the code into its form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/local.stamp ## measurements, with the ceiling of this machine beside them
	@exec $(BIN)/perennial bench quick $(ARGS)

faults: $(VENV)/dev.stamp ## kill, freeze and cut what can be, and compare with the oracle
	@exec $(BIN)/python -m pytest tests -m "faults or long" $(ARGS)

docs: $(VENV)/dev.stamp ## write asyncapi.yaml and docs/metrics.md anew, and check what the documents say
	@$(BIN)/python deploy/docs/build.py
	@exec $(BIN)/python -m pytest tests/contract $(ARGS)

clean: ## remove what was installed; the home with its data stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
