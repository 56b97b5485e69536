# Everything happens in .venv, which the first target makes.  Needs Python 3.11 or newer, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/demo.done
	$(BIN)/python -m sim replay traces/mixtral.jsonl

test: lint
	$(BIN)/python -m pytest -q

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/demo.done
	$(BIN)/python -m benchmarks.readme_table
	$(BIN)/python -m benchmarks.replay_speed

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spmoe needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo.done: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/test.done: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ .venv/demo.done

clean:
	rm -rf .venv build *.egg-info
