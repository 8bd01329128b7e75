# make demo   sets everything up and runs the whole path on sample messages
# make test   sets everything up and runs lint, types, layers and tests
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: setup demo test test-long lint chromium bench-edge bench-dapt bench-train bench-router \
  bench-certificates clean

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

# The pages are tested in a real browser, Debian's. Without the right to install it they are skipped.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
	  echo "No chromium: the page tests are skipped. On Debian: apt-get install chromium"

test: lint chromium
	$(BIN)/pytest

test-long: setup
	$(BIN)/pytest -m long

# Figures: `make bench-edge DATA=train.csv TEST=test.csv TEXT=text LABEL=category`. Without DATA the
# sample messages are used. Nothing else should run meanwhile.
GIVEN = $(if $(DATA),--data $(DATA)) $(if $(TEXT),--text $(TEXT)) $(if $(LABEL),--label $(LABEL))

bench-edge: setup
	$(BIN)/python -m tests.bench.edge $(GIVEN) $(if $(TEST),--test $(TEST)) $(if $(NAME),--name $(NAME))

bench-dapt: setup
	$(BIN)/python -m tests.bench.dapt $(GIVEN) $(if $(TEST),--test $(TEST))

bench-train: setup
	$(BIN)/python -m tests.bench.train $(GIVEN)

bench-router: setup
	$(BIN)/python -m tests.bench.router $(GIVEN) $(if $(TEST),--test $(TEST)) $(if $(NAME),--name $(NAME))

bench-certificates: setup
	$(BIN)/python -m tests.bench.certificates

clean:
	rm -rf $(VENV) .firstline/demo
