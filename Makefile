# make demo | test | test-milvus | check | dist | bench | prove | results | weights | clean
# make manifests | mcpb | check-clients | check-ci-clients | check-ui
# PYTHON picks the interpreter that makes .venv; TRIPTYCH_HOME is where weights and libraries of this checkout live.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PULL := $(VENV)/bin/triptych pull embedded
export TRIPTYCH_HOME ?= $(CURDIR)/.triptych
export MYPYPATH := .types

MILVUS_VERSION := 2.3.5
export MILVUS_ENV ?= $(CURDIR)/.cache/milvus-$(MILVUS_VERSION)

.PHONY: demo test test-milvus check dist bench prove results weights clean manifests mcpb check-clients check-ci-clients check-ui

demo: $(VENV)/.installed-mcp,office,audio,video
	$(PULL)
	$(VENV)/bin/triptych demo

test: $(VENV)/.installed-test,check
	$(PULL)
	TRIPTYCH_SPEECH=whisper_base $(PULL)
	$(PY) -m pytest

# The store on a real, old Milvus server and on a newer one over TCP. The server listens on all interfaces, so the tests
# run in a network of their own where that is allowed.
test-milvus: $(VENV)/.installed-test,check $(MILVUS_ENV)/.installed
	$(PULL)
	$(PY) .ci/alone.py $(PY) -m pytest -m milvus tests/test_store_servers.py

# The result viewer in a real Chromium (Debian's, or the one that CHROMIUM names); without one it fails.
check-ui: $(VENV)/.installed-test,browser
	$(PULL)
	$(PY) -m pytest -m ui tests/test_viewer.py

check: $(VENV)/.installed-test,check
	mkdir -p .types && ln -sfn .. .types/triptych
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p triptych
	$(PY) -m mypy --config-file tests/mypy.ini tests

dist: $(VENV)/.installed-test,check
	rm -rf dist build/export
	$(PY) .ci/export.py build/export
	$(PY) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist build/export
	rm -rf build/export

# What assistants, registries and stores read, from manifests/clients.toml, the version and the tools.
manifests: $(VENV)/.installed-test,check
	$(PY) .ci/manifests.py write

# The Claude Desktop bundle, with the wheel in it.
mcpb: dist
	$(PY) .ci/manifests.py bundle $$(ls dist/triptych-*.whl) dist/triptych.mcpb

# Other people's clients and validators, each in an environment of its own under CLIENTS_ENV (.cache/clients/made). What
# cannot be installed fails; check-ci-clients are those few that .ci/run runs. One alone: python tests/clients/check.py NAME
check-clients: $(VENV)/.installed-test,check
	$(PULL)
	$(PY) tests/clients/check.py all

check-ci-clients: $(VENV)/.installed-test,check
	$(PULL)
	$(PY) tests/clients/check.py ci

weights: $(VENV)/.installed-mcp
	$(PULL)

bench: $(VENV)/.installed-bench
	$(PULL)
	$(PY) benchmarks/bench.py $(if $(filter-out 0,$(QUICK)),--quick) $(foreach group,$(ONLY),--only $(group)) \
	  $(foreach folder,$(DATA),--data $(folder)) $(foreach file,$(QUESTIONS),--questions $(file)) \
	  $(if $(TRAIN),--train $(TRAIN))

# The experiment of one system: make prove ID=cpc. QUESTIONS names a question file, LIMIT how many of it; some want a
# collection, DATA, or questions to learn from, TRAIN; QUERIES are measured where a proof has so many. FULL=1, for text
# systems that learn: the larger course, on a GPU where there is one; its result is ID_full.json.
prove: $(VENV)/.installed-bench
	$(PULL)
	$(PY) benchmarks/proofs/$(ID).py $(if $(QUESTIONS),--questions $(QUESTIONS)) $(if $(LIMIT),--limit $(LIMIT)) \
	  $(if $(TRAIN),--train $(TRAIN)) $(if $(DATA),--data $(DATA)) $(if $(QUERIES),--queries $(QUERIES)) \
	  $(if $(filter-out 0,$(FULL)),--full)

results: $(VENV)/.installed-mcp
	$(PY) benchmarks/tables.py
	$(PY) benchmarks/systems_page.py

clean:
	rm -rf build dist .types .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(MILVUS_ENV)/.installed:
	test -x $(MILVUS_ENV)/bin/python || $(PYTHON) -m venv $(MILVUS_ENV)
	$(MILVUS_ENV)/bin/python -m pip install --disable-pip-version-check milvus==$(MILVUS_VERSION) || \
	  { echo "Milvus $(MILVUS_VERSION) cannot be installed here. Only make test-milvus needs it." >&2; exit 1; }
	touch $@

# One stamp for each set of extras: a second run installs nothing until pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Triptych needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --editable '.[$*]'
	touch $@
