"""What docs/prediction.md quotes: how good forecasts are, and how long before use they are known.

    python -m benchmarks.sim.prediction

reads models/pico/figures.json (made by `python -m training evaluate`), rates the forecasts of `TRACES` and replays them
for their lead times, runs the bundled pair on this machine's CPU to measure them, and writes
benchmarks/results/prediction.json.  Needs PyTorch.  `python -m benchmarks.pages prediction` makes the page of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sim
from benchmarks.files import RESULTS, ROOT, write_json
from spmoe.errors import InputError

RESULT = RESULTS / "prediction.json"
PAIR = ROOT / "models" / "pico" / "figures.json"
TRACES: Mapping[str, str | None] = MappingProxyType({"pico-32l": "mixtral-8x7b", "pico": None})
"""The traces that are replayed, and the model whose sizes and times each takes (None: its own)."""
SETTING: Mapping[str, Any] = MappingProxyType({"hardware": "rtx-4090", "cache": 0.5, "gamma": 4})
"""That of the replays.  Half of the experts have slots: where all have, nobody asks for forecasts."""

PROMPTS = ("def read_lines(path):", "class Queue:", "import os\n", "    def close(self):", "if __name__ ==", "try:\n")
"""What the bundled pair goes on from where its lead times are measured."""

POLICIES = (
    "on-demand.lru-per-layer",
    "spmoe.per-layer.next-gate",
    "spmoe.per-layer",
    "spmoe.refined",
    "clairvoyant",
)
"""Those that are compared: without a forecast, with one of the two, with both, and with the truth."""
REPLAYED: Mapping[str, str | None] = MappingProxyType(
    {"pico-32l": "mixtral-8x7b", "mixtral": None, "deepseek-v2-lite": None}
)
"""On these traces, timed as these models."""
CACHES = (0.5, 0.75)

MEASURED = "spmoe.refined"
"""The policy of the measured run: it asks for both forecasts."""


def results(pair: Path = PAIR, folder: Path = ROOT / "traces") -> dict[str, Any]:
    """All that the page quotes; null for a pair or a trace that is not there."""
    found: dict[str, Any] = {"pair": None, "measured": None, "traces": {}, "policies": {}}
    if pair.is_file():
        found["pair"] = of_pair(json.loads(pair.read_text(encoding="utf-8")))
        found["measured"] = measured()
    for name, as_model in TRACES.items():
        path = folder / f"{name}.jsonl"
        found["traces"][name] = of_trace(path, **SETTING, as_model=as_model) if path.is_file() else None
    for name, as_model in REPLAYED.items():
        path = folder / f"{name}.jsonl"
        found["policies"][name] = of_policies(path, as_model) if path.is_file() else None
    return found


def of_pair(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the page quotes of figures.json."""
    quoted = ("weights", "held_out", "table_tokens", "predictors", "reliability")
    wanted = ("attention_cosine", "router_cosine", "predictors")
    layers = [{name: layer[name] for name in wanted} for layer in figures["layers"]]
    return {**{name: figures[name] for name in quoted}, "layers": layers}


def measured() -> dict[str, Any]:
    """What the page quotes of a run of the bundled pair on this machine: lead times by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        trace, log = Path(folder, "run.jsonl"), Path(folder, "run.log")
        command = (
            f"-m engine run --policy {MEASURED} --cache {SETTING['cache']} --gamma {SETTING['gamma']} --device cpu"
        )
        subprocess.run(
            [sys.executable, *command.split(), "--record", str(trace), "--log", str(log), "--prompt", *PROMPTS],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
        )
        return of_trace(trace, log=log)


def of_trace(path: Path, **options: Any) -> dict[str, Any]:
    """What the page quotes of a trace's forecasts; `sha256` says of which file.  `options` as in `sim.forecasts`."""
    document = sim.forecasts(path, **options).to_json()
    wanted = ("top1_used", "busy_lead_ms", "busy_lead_loads", "lead_ms")

    def quoted(row: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: row[name] for name in wanted if name in row}
        return {name: None if value is None else float(f"{value:.6g}") for name, value in found.items()}

    return {
        "sha256": digest(path),
        "model": document["trace"]["model"],
        **{name: document[name] for name in ("config", "inputs", "notes")},
        "sources": {
            name: {
                **{part: source[part] for part in ("origin", "lead") if part in source},
                "summary": quoted(source["summary"]),
                "layers": [quoted(row) for row in source["layers"]],
            }
            for name, source in document["sources"].items()
        },
    }


def of_policies(path: Path, as_model: str | None) -> dict[str, Any]:
    """What the page quotes of replays of a trace: by cache share and policy, ms per token."""
    tpot = {}
    for share in CACHES:
        replay = sim.replay(path, POLICIES, **{**SETTING, "cache": share}, as_model=as_model, jobs=None)
        tpot[str(share)] = {one.recipe.name: float(f"{one.metrics.tpot_ms:.6g}") for one in replay.results}
    return {"sha256": digest(path), "model": replay.setting.geometry.name, "tpot_ms": tpot}


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Write the result file; returns the exit status: 2 where a trace is bad."""
    try:
        found = results()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    absent = [name for name, part in {"models/pico/figures.json": found["pair"], **found["traces"]}.items() if not part]
    if absent:
        print(f"missing, so left out: {', '.join(absent)}", file=sys.stderr)
    write_json(RESULT, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
