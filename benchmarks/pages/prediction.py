"""Puts the tables of docs/prediction.md between their markers, and draws its figure.

    python -m benchmarks.pages.prediction

reads models/pico/figures.json (made by `python -m training evaluate`), rates the forecasts of `TRACES` and replays them
for their lead times, runs the shipped pair on this machine's CPU to measure them, and writes
benchmarks/results/prediction.json, docs/prediction.md and docs/prediction-reliability.svg.  What is not there yet gets
a line instead of a table.  A test compares all of them.  Needs PyTorch and matplotlib.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sim
from benchmarks.validation.markdown import table
from sim.plots.plot import COLOURS, MARKERS
from sim.plots.plot import SETTINGS as STYLE
from spmoe.errors import InputError
from spmoe.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "prediction.md"
RESULTS = ROOT / "benchmarks" / "results" / "prediction.json"
FIGURE = ROOT / "docs" / "prediction-reliability.svg"
PAIR = ROOT / "models" / "pico" / "figures.json"
TRACES: Mapping[str, str | None] = MappingProxyType({"pico-32l": "mixtral-8x7b", "pico": None})
"""The traces that are replayed, and the model whose sizes and times each takes (None: its own)."""
SETTING: Mapping[str, Any] = MappingProxyType({"hardware": "rtx-4090", "cache": 0.5, "gamma": 4})
"""That of the replays.  Half of the experts have slots: where all have, nobody asks for forecasts."""

PROMPTS = ("def read_lines(path):", "class Queue:", "import os\n", "    def close(self):", "if __name__ ==", "try:\n")
"""What the shipped pair goes on from where its lead times are measured."""

PREDICTORS = {
    "draft": "draft's state",
    "token_table": "token table",
    "popularity": "popularity",
    "next_gate": "own state, layer before",
    "token_before": "token before",
}
"""Headings, by the names in figures.json and in the documents of `sim forecasts`."""

MEASURES = {
    "top1_used": "first named is used",
    "top1_exact": "first named is the first of those used",
    "recall": "of those used, among as many named",
    "recall_one_more": "among one more",
    "recall_two_more": "among two more",
}

PUBLISHED_TOP1, PUBLISHED_COSINE = 0.8894, 0.598
"""SP-MoE, arXiv 2510.10302: its predictor over its pairs of models; attention outputs of Mistral 7B and Mixtral."""

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

MEAN = "mean from layer 1"


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
    """What the page quotes of a run of the shipped pair on this machine: lead times by the clock."""
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


def embedded(page: str, found: Mapping[str, Any]) -> str:
    """The page's text with what `results` found between its markers."""
    for name, text in _blocks(found).items():
        begin, end = f"<!-- {name}: made by benchmarks/pages/prediction.py -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n\n{text}\n{end}{after}"
    return page


def _blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the markers of that name."""
    pair = found["pair"]
    blocks = {
        name: "\n".join(write(pair)) if pair else _absent("models/pico/figures.json")
        for name, write in {"accuracy": _accuracy, "published": _published, "reliability": _reliability}.items()
    }
    blocks["lead-measured"] = (
        "\n".join(_lead(run)) if (run := found["measured"]) else _absent("models/pico/figures.json")
    )
    blocks["policies"] = "\n".join(_policies(found["policies"]))
    for name, trace in found["traces"].items():
        blocks[f"lead-{name}"] = "\n".join(_lead(trace)) if trace else _absent(f"traces/{name}.jsonl")
    return blocks


def _absent(path: str) -> str:
    return f"*No table yet: there is no `{path}`.*\n"


def _accuracy(pair: Mapping[str, Any]) -> Iterator[str]:
    held_out = pair["held_out"]
    yield (
        f"{held_out['tokens']:,} tokens of {held_out['files']} held-out files; tables and popularity are learned from "
        f"{pair['table_tokens']:,} tokens of training text.  Share of tokens where the expert named first is used:\n"
    )
    layers = [(str(number), layer["predictors"]) for number, layer in enumerate(pair["layers"])]
    yield table(
        ("layer", *PREDICTORS.values()),
        [(label, *_shares(found, "top1_used")) for label, found in [*layers, (MEAN, pair["predictors"])]],
    )
    yield f"By all measures, {MEAN}:\n"
    yield table(
        ("", *PREDICTORS.values()),
        [(label, *_shares(pair["predictors"], measure)) for measure, label in MEASURES.items()],
    )


def _published(pair: Mapping[str, Any]) -> Iterator[str]:
    cosine = {
        name: [layer[name] for layer in pair["layers"][1:] or pair["layers"]]
        for name in ("attention_cosine", "router_cosine")
    }
    mean = {name: sum(values) / len(values) for name, values in cosine.items()}
    drafted = pair["predictors"]["draft"]
    yield table(
        ("", "SP-MoE", f"this pair, {MEAN}"),
        [
            (MEASURES["top1_used"], f"{_share(PUBLISHED_TOP1)} (top-1, its pairs)", _share(drafted["top1_used"])),
            (MEASURES["top1_exact"], "", _share(drafted["top1_exact"])),
            (
                "cosine of attention outputs",
                f"{_share(PUBLISHED_COSINE)} (Mistral, Mixtral)",
                _share(mean["attention_cosine"]),
            ),
            ("cosine of what the router reads", "", _share(mean["router_cosine"])),
        ],
    )
    yield table(
        ("layer", "cosine of attention outputs", "of what the router reads", "draft's first is used"),
        [
            (
                str(number),
                _share(layer["attention_cosine"]),
                _share(layer["router_cosine"]),
                _share(layer["predictors"]["draft"]["top1_used"]),
            )
            for number, layer in enumerate(pair["layers"])
        ],
    )


def _reliability(pair: Mapping[str, Any]) -> Iterator[str]:
    groups = pair["reliability"]
    yield f"![How often a forecast comes true, by its probability]({FIGURE.name})\n"
    yield table(
        ("layers", "forecasts", "calibration error: is the first", "is used"),
        [
            (
                _named(group),
                f"{sum(each['cells'] for each in group['bins']):,}",
                *(f"{group[name]:.3f}" for name in ("first_error", "used_error")),
            )
            for group in groups
        ],
    )
    yield f"By probability, {_named(groups[-1])}:\n"
    yield table(
        ("probability", "forecasts", "mean probability", "is the first", "is used"),
        [
            (
                f"{each['low']:.1f} to {each['high']:.1f}",
                f"{each['cells']:,}",
                *(_share(each[name]) for name in ("mean", "first", "used")),
            )
            for each in groups[-1]["bins"]
        ],
    )


def _lead(trace: Mapping[str, Any]) -> Iterator[str]:
    sources, config = trace["sources"], trace["config"]
    if "log" in config:
        machine = "run on a CPU (one thread, float32), times by the clock"
    else:
        timed_as = "" if config["model"] == trace["model"] else f"timed as {config['model']} "
        machine = (
            f"{timed_as}at {config['bits']:g} bits on {config['hardware']}, slots for {config['cache_share']:.0%} of "
            "the experts"
        )
    yield f"{trace['model']} {machine}, gamma {config['gamma']}, {trace['inputs']:,} inputs of the verifier.\n"
    timed = [name for name in PREDICTORS if "lead" in sources.get(name, {})]
    others = [name for name in PREDICTORS if name in sources and name not in timed]
    for name in timed:
        origin, lead = sources[name]["origin"], sources[name]["lead"]
        kind = f"**drawn**, right at a rate of {origin['accuracy']}" if origin["kind"] == "drawn" else origin["kind"]
        yield (
            f"- {PREDICTORS[name].capitalize()} (`{name}`): {kind}.  Lead times are those of `{lead['policy']}`; a "
            f"load takes {lead['load_ms']:.3g} ms."
        )
    # Those on windows are about rates that are not shown here.
    yield from (f"- {note[0].upper()}{note[1:]}." for note in trace["notes"] if not note.startswith("windows:"))
    yield ""
    headings = [heading for name in timed for heading in (PREDICTORS[name], "lead ms", "in loads", "with waits ms")]
    rows = []
    shown = [sources[name] for name in (*timed, *others)]
    for number, found in enumerate(zip(*([one["summary"], *one["layers"]] for one in shown), strict=True)):
        cells = [cell for row in found for cell in _cells(row)]
        rows.append((MEAN if number == 0 else str(number - 1), *cells))
    yield table(("layer", *headings, *(PREDICTORS[name] for name in others)), [*rows[1:], rows[0]])


def _policies(traces: Mapping[str, Any]) -> Iterator[str]:
    there = {name: trace for name, trace in traces.items() if trace}
    headings = [f"`{name}`, {float(share):.0%}" for name, trace in there.items() for share in trace["tpot_ms"]]
    columns = [tpot for trace in there.values() for tpot in trace["tpot_ms"].values()]
    yield table(
        ("ms per token", *headings), [(f"`{one}`", *(f"{tpot[one]:.2f}" for tpot in columns)) for one in POLICIES]
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    leads = [row[name] for name in ("busy_lead_ms", "busy_lead_loads", "lead_ms") if name in row]
    return [_share(row["top1_used"]), *("" if each is None else f"{each:.3g}" for each in leads)]


def _shares(predictors: Mapping[str, Any], measure: str) -> list[str]:
    """Of every predictor, "" where it says nothing."""
    return [_share(predictors[name][measure]) if name in predictors else "" for name in PREDICTORS]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _named(group: Mapping[str, Any]) -> str:
    """The layers of a group."""
    first, last = group["first_layer"], group["last_layer"]
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def draw(groups: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The reliability of groups of layers as SVG; the same groups give the same bytes with the same matplotlib."""
    import matplotlib.style  # Slow to import.
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, name, title in zip(
            panels, ("first", "used"), ("is the first of those used", "is among those used"), strict=True
        ):
            axes.plot((0, 1), (0, 1), color="#555555", linestyle="--", linewidth=1, label="as often as it says")
            for group, colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
                points = [(each["mean"], each[name]) for each in group["bins"]]
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=_named(group))
            axes.set_title(f"the expert named first {title}", fontsize=9)
            axes.set_xlabel("probability that the router gives it")
        panels[0].set_ylabel("share of forecasts that come true")
        panels[1].legend(loc="lower right", frameon=False)
        with atomic_write(path, binary=True) as stream:
            figure.savefig(stream, format="svg", metadata={"Date": None})


def main() -> int:
    """Write results, page and figure; returns the exit status: 2 where a trace is bad or matplotlib is missing."""
    try:
        # As they will be read back: the page must not tell results from their file.
        found = json.loads(json.dumps(results(), allow_nan=False))
        if found["pair"]:
            draw(found["pair"]["reliability"], FIGURE)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install 'spmoe[plot]'", file=sys.stderr)
        return 2
    absent = [name for name, part in {"models/pico/figures.json": found["pair"], **found["traces"]}.items() if not part]
    if absent:
        print(f"not there yet, so there are no tables of it: {', '.join(absent)}", file=sys.stderr)
    with atomic_write(RESULTS) as stream:
        stream.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    text = embedded(PAGE.read_text(encoding="utf-8"), found)
    with atomic_write(PAGE) as stream:
        stream.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
