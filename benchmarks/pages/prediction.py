"""The tables of docs/prediction.md, from what `benchmarks.sim.prediction` measured; a line where there is nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.files import ROOT, read_json
from benchmarks.markdown import table
from benchmarks.pages.markers import Block
from benchmarks.pages.reliability_plot import FIGURE, layers_of
from benchmarks.sim.prediction import POLICIES, RESULT

PAGE = ROOT / "docs" / "prediction.md"

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

MEAN = "mean from layer 1"


def blocks() -> Iterator[Block]:
    """Those of the committed results."""
    return blocks_of(read_json(RESULT))


def blocks_of(found: Mapping[str, Any]) -> Iterator[Block]:
    """Those of the results that `benchmarks.sim.prediction` gives."""
    return (Block(PAGE, name, [text]) for name, text in _texts(found).items())


def _texts(found: Mapping[str, Any]) -> dict[str, str]:
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
                layers_of(group),
                f"{sum(each['cells'] for each in group['bins']):,}",
                *(f"{group[name]:.3f}" for name in ("first_error", "used_error")),
            )
            for group in groups
        ],
    )
    yield f"By probability, {layers_of(groups[-1])}:\n"
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
