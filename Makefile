# make demo   sets everything up and runs the whole path on sample messages
# make test   sets everything up and runs lint, types, layers and tests
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: setup demo test test-long lint clean

setup: $(READY)

$(READY): pyproject.toml requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: no $(PYTHON) on the PATH. Try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/firstline demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest

test-long: setup
	$(BIN)/pytest -m long

clean:
	rm -rf $(VENV) .firstline
