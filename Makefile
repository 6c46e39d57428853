PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
# Tests and benchmarks start many Pythons: compiling torch anew in each takes longer than most of what they do.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: bench-small clean data demo docs format help lint lock results results-page results-record setup slow \
	test test-fast test-servers type

help:                     ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup data          ## mark an encoder, steal it, tell copies from innocents; two to four minutes; writes demo/report.html
	$(BIN)/sslguard demo --out demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS ?= 2

ifdef T
test: setup data          # one file, folder or test by its path, or all that match an expression
	$(PYTEST) $(if $(wildcard $(firstword $(subst ::, ,$(T)))),,-k) '$(T)'
else
test: lint type data      ## lint, types, tests; T=PATH or T=EXPRESSION runs these tests alone
	$(PYTEST) -n $(WORKERS) --dist=worksteal
endif

test-fast: setup          ## tests that train nothing, within 90 seconds
	$(PYTEST) -n $(WORKERS) --dist=worksteal -m 'not slow and not trains and not heavy and not network and not fuzz and not browser'

slow: setup data          ## the tests that take minutes
	$(PYTEST) -m slow

lint: setup               ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup             ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup               ## pyrefly
	$(BIN)/pyrefly check

docs: setup               ## build the documentation as a site, without a network: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench-small: setup data   ## one encoder, three schemes: seven minutes on two cores; a killed run goes on
	$(BIN)/sslguard bench run benchmarks/small.toml out/bench-small --workers 2
	$(BIN)/sslguard bench plot out/bench-small

results: setup data       ## every scheme against every attack, hours; a killed run goes on; writes docs/results/results.md and .html
	$(BIN)/sslguard bench run benchmarks/page.toml out/results --workers 2
	$(BIN)/sslguard bench plot out/results --into docs/results

RECORDED := benchmarks/results/bench-cells.tar.xz
EXACT := benchmarks/results/exact-cells.tar.xz

results-page: setup       ## the same pages, and those of the exact scheme, from the cells that are recorded here
	rm -rf out/recorded out/exact-recorded && mkdir -p out/recorded out/exact-recorded
	$(BIN)/python -m tarfile -e $(RECORDED) out/recorded
	$(BIN)/sslguard bench plot out/recorded --into docs/results
	$(BIN)/python -m tarfile -e $(EXACT) out/exact-recorded
	$(BIN)/sslguard bench plot out/exact-recorded --into docs/results --name exact

results-record: setup     ## keep the results of out/results here, without the weights
	cd out/results && $(CURDIR)/$(BIN)/python -m tarfile -c $(CURDIR)/$(RECORDED) config.toml cells

SERVERS := tests/servers/.venv

test-servers: $(SERVERS)/.synced   ## suspects behind servers of others, in an environment that shares this one's torch
	SSLGUARD_SERVERS_PYTHON=$(CURDIR)/$(SERVERS)/bin/python $(PYTEST) tests/servers

$(SERVERS)/.synced: tests/servers/requirements.lock $(VENV)/.synced
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(SERVERS)
	$(BIN)/uv pip install --quiet --python $(SERVERS)/bin/python --no-deps --require-hashes -r tests/servers/requirements.lock
	ours=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	theirs=$$($(SERVERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$ours')" > "$$theirs/project.pth"
	touch $@

setup: $(VENV)/.synced    ## make .venv as requirements.lock says, and install both packages of this repository in it

$(VENV)/.synced: requirements.lock pyproject.toml packages/sslguard-testbed/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sslguard needs Python >= 3.11; $(PYTHON) is older. Set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
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

clean:                    ## remove .venv, the demo, the site and caches
	rm -rf $(VENV) $(SERVERS) demo site .pytest_cache .ruff_cache
