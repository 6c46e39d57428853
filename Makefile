PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.PHONY: bench-small demo test setup data lock results results-page results-record results-sslguard slow clean \
	test-servers

demo: setup data          ## the main job on real input: mark, steal, prove; writes demo/report.html
	$(BIN)/sslguard demo --out demo

test: setup data          ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist=worksteal

slow: setup data          ## the long runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

bench-small: setup data    ## one encoder, three schemes: seven minutes on two cores; a killed run goes on
	$(BIN)/sslguard bench run recipes/bench/small.toml out/bench-small --workers 2
	$(BIN)/sslguard bench plot out/bench-small

results: setup data       ## every scheme against every attack, hours; a killed run goes on; writes docs/results/results.md and .html
	$(BIN)/sslguard bench run recipes/bench/page.toml out/results --workers 2
	$(BIN)/sslguard bench plot out/results --into docs/results

RECORDED := benchmarks/results/bench-cells.tar.xz

results-page: setup       ## the same pages from the cells that are recorded here: seconds
	rm -rf out/recorded && mkdir -p out/recorded
	$(BIN)/python -m tarfile -e $(RECORDED) out/recorded
	$(BIN)/sslguard bench plot out/recorded --into docs/results

results-record: setup     ## keep the results of out/results here, without the weights
	cd out/results && $(CURDIR)/$(BIN)/python -m tarfile -c $(CURDIR)/$(RECORDED) config.toml cells

results-sslguard: setup data   ## SSLGuard by itself, hours; a killed run goes on; writes docs/results/results-sslguard.md
	$(BIN)/python benchmarks/whole.py out/results-sslguard --workers 2

SERVERS := tests/servers/.venv

test-servers: $(SERVERS)/.synced   ## suspects behind servers of others, in an environment that shares this one's torch
	OMP_NUM_THREADS=1 SSLGUARD_SERVERS_PYTHON=$(CURDIR)/$(SERVERS)/bin/python $(BIN)/pytest tests/servers

$(SERVERS)/.synced: tests/servers/requirements.lock $(VENV)/.synced
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(SERVERS)
	$(BIN)/uv pip install --quiet --python $(SERVERS)/bin/python --no-deps --require-hashes -r tests/servers/requirements.lock
	ours=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	theirs=$$($(SERVERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$ours')" > "$$theirs/project.pth"
	touch $@

setup: $(VENV)/.synced

$(VENV)/.synced: requirements.lock pyproject.toml packages/sslguard-testbed/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sslguard needs Python >= 3.11; $(PYTHON) is older. Set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable packages/sslguard-testbed
	touch $@

# Fashion-MNIST: the system package where the machine has one, else the program downloads it itself.
data:
	@test -d /usr/share/datasets/fashion-mnist \
	  || { command -v apt-get >/dev/null && { \
	       if [ "$$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi; \
	       $$sudo apt-get update -qq && $$sudo apt-get install -y -qq dataset-fashion-mnist; } >/dev/null 2>&1; } \
	  || echo "no system package of Fashion-MNIST here; it will be downloaded on first use"

lock:                     ## rewrite requirements.lock from pyproject.toml
	rm -f uv.lock
	$(BIN)/uv lock --quiet
	$(BIN)/uv export --quiet --all-extras --no-emit-project --no-annotate --no-header -o requirements.lock
	rm -f uv.lock

clean:
	rm -rf $(VENV) $(SERVERS) demo .pytest_cache .mypy_cache .ruff_cache
