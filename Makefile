# make demo   sets everything up and runs the whole path on sample messages
# make test   sets everything up and runs lint, types, layers and tests
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: setup demo test test-long lint servers bench-edge bench-dapt bench-teacher bench-train \
  bench-router bench-certificates bench-serve bench-score bench-guard chaos clean

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

# The pages are tested in a real browser and what is shared in a real Redis, Debian's. Without the
# right to install them those tests are skipped.
servers:
	@{ command -v chromium && command -v redis-server; } >/dev/null || { [ "$$(id -u)" = 0 ] && \
	  command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium redis-server >/dev/null; } || \
	  echo "Tests are skipped for want of them: apt-get install chromium redis-server"

# Unit tests run side by side, each process with one thread: torch's threads of two processes wait
# for each other far longer than they work. What starts Ray runs alone: two runs side by side met
# each other's Ray token. What starts a cluster with a token of its own has a process of its own.
CLUSTER := tests/integration/test_cluster.py

test: lint servers
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit --numprocesses logical --dist loadfile
	$(BIN)/pytest --ignore tests/unit --ignore $(CLUSTER)
	$(BIN)/pytest $(CLUSTER)

test-long: setup
	$(BIN)/pytest -m long --ignore tests/chaos

# Figures: `make bench-edge DATA=train.csv TEST=test.csv TEXT=text LABEL=category`. Without DATA the
# sample messages are used. Nothing else should run meanwhile.
GIVEN = $(if $(DATA),--data $(DATA)) $(if $(TEXT),--text $(TEXT)) $(if $(LABEL),--label $(LABEL))

bench-edge: setup
	$(BIN)/python -m tests.bench.edge $(GIVEN) $(if $(TEST),--test $(TEST)) $(if $(NAME),--name $(NAME))

bench-dapt: setup
	$(BIN)/python -m tests.bench.dapt $(GIVEN) $(if $(TEST),--test $(TEST))

# The cloud model against its references. FEW: sizes of `train` to measure once more with; PARTS:
# some of words, plain, ours, before and few. What was measured before is not measured again.
bench-teacher: setup
	$(BIN)/python -m tests.bench.teacher $(GIVEN) $(if $(TEST),--test $(TEST)) $(if $(NAME),--name $(NAME)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FEW),--few $(FEW)) $(if $(PARTS),--parts $(PARTS)) $(if $(BEFORE),--before $(BEFORE))

bench-train: setup
	$(BIN)/python -m tests.bench.train $(GIVEN)

bench-router: setup
	$(BIN)/python -m tests.bench.router $(GIVEN) $(if $(TEST),--test $(TEST)) $(if $(NAME),--name $(NAME))

bench-certificates: setup
	$(BIN)/python -m tests.bench.certificates

# The service against its peers; wrk makes the load. EDGE and CLOUD are bundles, or SERVED a home.
bench-serve: setup
	$(BIN)/python -m tests.bench.serve $(if $(DATA),--data $(DATA)) $(if $(TEXT),--text $(TEXT)) $(if $(EDGE),--edge $(EDGE) --cloud $(CLOUD)) $(if $(SERVED),--home $(SERVED))

bench-score: setup
	$(BIN)/python -m tests.bench.score $(if $(EDGE),--edge $(EDGE) --cloud $(CLOUD)) $(if $(DATA),--texts $(DATA))

bench-guard: setup
	$(BIN)/python -m tests.bench.guard $(if $(DATA),--data $(DATA)) $(if $(TEXT),--text $(TEXT))

# Twenty connections, a fault in the middle, and what the clients saw.
chaos: setup
	$(BIN)/pytest -m long tests/chaos

clean:
	rm -rf $(VENV) .firstline/demo
