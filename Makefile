# Everything happens in .venv, which the first target makes.  Needs Python 3.11 or newer, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

# What the demo compares: one row per system, 4 drafted tokens per step; spmoe.foresight chooses the number itself.
DEMO = on-demand.lru on-demand.lru-per-layer static.hindsight accelerate.layer-stream llamacpp.n-cpu-moe fiddler.spec moe-spac mixtral-offloading.paper.spec adapmoe.spec moe-infinity.paper.spec finemoe.paper.spec least-stale.spec next-gate spmoe.paper spmoe.per-layer spmoe.foresight clairvoyant
# What it shows once more without experts on the CPU.
DEMO_NO_CPU = spmoe.foresight

.PHONY: demo replay test soak lint bench clean

# On the CPU whatever the machine has, so that it shows the same everywhere.
demo: replay .venv/engine.done
	$(BIN)/python -m engine run --device cpu --cache 0.5 --max-new-tokens 96 --against-plain

# The first half of the demo, without PyTorch.
replay: .venv/replay.done
	$(BIN)/python -m sim replay traces/mixtral.jsonl --policy $(DEMO)
	$(BIN)/python -m sim replay traces/mixtral.jsonl --policy $(DEMO_NO_CPU) --no-cpu-experts

# Tests of one group run in one worker: what they compare is computed once.
PYTEST = $(BIN)/python -m pytest -q -n auto --dist loadgroup

test: lint
	$(PYTEST)

# The same code with ten times as many cases, and the tests that are marked slow: within an hour on two cores.  What
# the tests count goes to build/soak.xml.
soak: .venv/test.done
	SPMOE_SOAK=10 $(PYTEST) -m "" --junitxml=build/soak.xml -o junit_family=xunit1

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/replay.done
	$(BIN)/python -m benchmarks.sim.demo
	$(BIN)/python -m benchmarks.pages demo
	$(BIN)/python -m benchmarks.sim.replay_speed

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spmoe needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/replay.done: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# With PyTorch.
.venv/engine.done: pyproject.toml constraints/cpu.txt | .venv/replay.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[engine]'
	@touch $@

# With PyTorch and what tests and linters need.
.venv/test.done: pyproject.toml constraints/cpu.txt | .venv/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[test]'
	@touch $@ .venv/engine.done .venv/replay.done

clean:
	rm -rf .venv build *.egg-info
