"""Check 4: what speculation costs when all experts are resident, and when they are not."""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.markdown import table, verdict
from benchmarks.validation.inputs import CONFIG, ROOT, machine, real_trace
from sim import replay, sweep
from sim.plots.plot import plot
from sim.pool import spread
from spmoe.trace.writer import write_trace

SETTINGS = CONFIG["cascade"]
FIGURE = ROOT / "docs" / "validation-gamma.svg"


def run(data: Path, jobs: int) -> dict[str, Any]:
    """Resident: fit the agreement at one K, predict the other.  Offloaded: TPOT against gamma."""
    agreements, lengths = SETTINGS["agreements"], [int(k) for k in SETTINGS["published"]]
    tasks = [(data, agreement, seed) for agreement in agreements for seed in range(SETTINGS["seeds"])]
    change: dict[float, dict[int, list[float]]] = {one: {k: [] for k in lengths} for one in agreements}
    for agreement, found in spread(resident, tasks, jobs):
        for k, value in found.items():
            change[agreement][k].append(value)
    means = {agreement: {k: fmean(values) for k, values in by.items()} for agreement, by in change.items()}
    fit = SETTINGS["fit_gamma"]
    at = crossing([(one, means[one][fit]) for one in agreements], SETTINGS["published"][str(fit)])
    predicted = {k: interpolated([(one, means[one][k]) for one in agreements], at) for k in lengths}
    return {
        "change": {str(agreement): {str(k): value for k, value in by.items()} for agreement, by in means.items()},
        "agreement": at,
        "rows": [
            {"k": k, "published": published, "ours": predicted[int(k)], "fitted": int(k) == fit}
            for k, published in SETTINGS["published"].items()
        ],
        "offloaded": _offloaded(data, jobs),
    }


def resident(task: tuple[Path, float, int]) -> tuple[float, dict[int, float]]:
    """Change of tokens per second against no speculation, by K, with every expert resident: loads take no time."""
    data, agreement, seed = task
    figures = SETTINGS["hardware"]
    hardware = machine(
        figures["name"],
        figures,
        layer_overhead_us=figures["layer_overhead_us"],
        expert_overhead_us=figures["expert_overhead_us"],
        draft_token_us=figures["draft_token_us"],
    )
    trace = real_trace(data, agreement, seed)
    times = {}
    for gamma in (0, *map(int, SETTINGS["published"])):
        metrics = (
            replay(trace, "on-demand.lru", hardware, bits=SETTINGS["bits"], cache=1, gamma=gamma).results[0].metrics
        )
        times[gamma] = (metrics.decode_ns - metrics.stall_ns) / metrics.tokens
    return agreement, {gamma: times[0] / time - 1 for gamma, time in times.items() if gamma}


def _offloaded(data: Path, jobs: int) -> list[dict[str, Any]]:
    settings = SETTINGS["offloaded"]
    with TemporaryDirectory() as folder:
        paths = []
        for agreement in settings["agreements"]:
            trace = real_trace(data, agreement)
            paths.append(Path(folder) / f"agreement-{agreement}.jsonl")
            write_trace(paths[-1], trace.header, trace.lines)
        out = Path(folder) / "gamma.csv"
        cells = sweep(
            paths,
            settings["policies"],
            settings["hardware"],
            bits=settings["bits"],
            cache=settings["cache"],
            gamma=settings["gammas"],
            out=out,
            jobs=jobs,
        )
        plot(out, "gamma", out=FIGURE)
    rows = []
    for (trace_name, policy), group in cells.groupby(["trace", "policy"], sort=False):
        tpot = {int(gamma): float(ms) for gamma, ms in zip(group["gamma"], group["tpot_ms"], strict=True)}
        rows.append(
            {
                "agreement": str(trace_name).removeprefix("agreement-").removesuffix(".jsonl"),
                "policy": policy,
                "tpot_ms": tpot,
            }
        )
    return rows


def crossing(points: list[tuple[float, float]], value: float) -> float:
    """Where the line through the points first takes a value; ValueError where it never does."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if min(y0, y1) <= value <= max(y0, y1):
            return x0 if y0 == y1 else x0 + (x1 - x0) * (value - y0) / (y1 - y0)
    raise ValueError(f"the points never reach {value}")


def interpolated(points: list[tuple[float, float]], at: float) -> float:
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    raise ValueError(f"{at} lies outside the points")


def summary(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was checked, by which criterion, what came of it, and the verdict."""
    one = next(row for row in found["rows"] if not row["fitted"])
    error = 100 * (one["ours"] - one["published"])
    return [
        (
            f"Cascade: K = {one['k']} slows Mixtral down, predicted",
            f"within {SETTINGS['within_points']} points of {one['published']:.0%}",
            f"{one['ours']:.0%} ({error:+.1f} points)",
            verdict(abs(error) <= SETTINGS["within_points"]),
        )
    ]


def section(found: dict[str, Any]) -> str:
    """The section of the page, without its heading."""
    settings = SETTINGS
    lengths = [row["k"] for row in found["rows"]]
    changes = table(
        ("agreement", *(f"K = {k}" for k in lengths)),
        ((agreement, *(f"{by[k]:+.0%}" for k in lengths)) for agreement, by in found["change"].items()),
    )
    rows = table(
        ("K", "published", "ours", "error", ""),
        (
            (
                one["k"],
                f"{one['published']:.0%}",
                f"{one['ours']:.0%}",
                f"{100 * (one['ours'] - one['published']):+.1f} points",
                "fitted"
                if one["fitted"]
                else verdict(100 * abs(one["ours"] - one["published"]) <= settings["within_points"]),
            )
            for one in found["rows"]
        ),
    )
    gammas = list(found["offloaded"][0]["tpot_ms"])
    offloaded = table(
        ("policy", "agreement", *(f"gamma {gamma}" for gamma in gammas), "speculation"),
        (
            (
                f"`{one['policy']}`",
                one["agreement"],
                *(f"{one['tpot_ms'][gamma]:.1f}" for gamma in gammas),
                "slows down"
                if min(one["tpot_ms"].values()) == one["tpot_ms"]["0"]
                else f"best at gamma {min(gammas, key=lambda gamma: one['tpot_ms'][gamma])}",
            )
            for one in found["offloaded"]
        ),
    )
    where = settings["offloaded"]
    return (
        f"All experts resident on a machine like the RTX 6000 Ada ({settings['bits']} bits; data sheet figures in the "
        f"settings), real routing, a drafter that costs next to nothing, means of {settings['seeds']} seeds.  Change "
        "of tokens per second against no speculation, by how often a drafted token is right:\n\n"
        f"{changes}\n"
        f"At agreement {found['agreement']:.2f} K = {settings['fit_gamma']} comes to the published figure.  That "
        "much is fitted; the other K is predicted with it:\n\n"
        f"{rows}\n"
        f"Where speculation slows *offloaded* MoE down: TPOT in ms at {where['cache']:.0%} cache on the "
        f"{where['hardware']} profile, {where['bits']} bits, Mistral-7B as the draft.\n\n"
        "![TPOT against gamma](validation-gamma.svg)\n\n"
        f"{offloaded}"
    )
