PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.PHONY: demo test setup data check lock results slow clean

demo: setup data          ## the main job on real input: mark, steal, prove; writes demo/report.html
	$(BIN)/sslguard demo --out demo

test: setup data          ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest

slow: setup data          ## the long runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

results: setup data       ## the whole benchmark, hours; a killed run goes on; writes docs/results.md
	$(BIN)/python benchmarks/whole.py out/results --workers 2

setup: $(VENV)/.synced

$(VENV)/.synced: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sslguard needs Python >= 3.11; $(PYTHON) is older. Set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
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
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
