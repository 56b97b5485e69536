"""`python -m engine profile`: measures a machine, for the simulator to know."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cli.summary import show
from engine.cli.timed_pair import LATENCY_NS, TOO_LARGE, describe_link, host_memory, named_pair
from engine.memory.out_of_memory import oom_as_input_error
from engine.profiling.calibration import Calibration
from engine.profiling.profile import Profile
from spmoe.cli import json_output, printable
from spmoe.files import check_distinct
from spmoe.machine.units import format_size
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.registry import RECIPES
from spmoe.progress import progress_bar
from spmoe.results.run import hardware_of


def profile(options: argparse.Namespace) -> None:
    """Measure the machine, write its profile and say the most important of it."""
    check_distinct(out=options.out)
    pair, device = named_pair(options, options.model, options.draft)
    name = Path(options.out).stem
    with json_output(options.out) as write, oom_as_input_error(device, TOO_LARGE):
        with progress_bar(options.turns + 3, "readings") as progress:
            progress("models", 0)
            subject = pair.build(device, host_memory(options))
            progress("link and kernels", 1)
            study = Calibration(subject, options.link_gbps, LATENCY_NS)
            for turn in range(options.turns):
                progress(f"turn {turn + 1}", 1)
                study.turn()
            progress("decisions", 1)
            study.run_decisions(_native() if pair.layer_map is not None else ())
        document = Profile(study).document(name, describe_link(options))
        hardware_of(document, options.out)  # What cannot be read again is not written.
        write(document)
    print(printable(show(_summary(document, options.out)), keep="\n"))


def _native() -> tuple[str, ...]:
    """Policies that the engine runs as they are."""
    return tuple(name for name, one in RECIPES.items() if one.lossless and one.runtime == NATIVE)


def _summary(document: dict[str, Any], out: str) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    link, timings, measured = document["link"], document["timings"], document["measured"]
    transfers = measured["link"]["transfers"]
    off = max(abs(each["off_the_line"]) for each in transfers)
    largest = transfers[-1]
    beside = largest["beside_compute"]["median_us"] / largest["median_us"]
    yield "profile", f"{out}: {document['source']}"
    yield (
        "link",
        f"{link['bandwidth_gb_per_s']:,.2f} GB/s behind {link['latency_us']:,.1f} us, a further copy "
        f"{link['copy_us']:,.1f} us; {len(transfers)} sizes up to {format_size(largest['bytes'])} are within {off:.1%}",
    )
    yield (
        "",
        f"beside compute transfers take {beside:.2f} times as long, compute beside transfers "
        f"{measured['link']['compute_beside_transfers']:.2f} times",
    )
    yield "layer", f"{_curve(timings['layer'])} for attention, router and bookkeeping"
    yield "expert", f"{_curve(timings['expert'])} in a slot"
    yield "", f"{_curve(timings['host_expert'])} on the CPU"
    yield (
        "draft",
        f"{_curve(timings['draft_token'], 'read')}, and {timings['forecast_us']:,.1f} us for each layer's forecast",
    )
    arrival = f"{timings['landing_us']:,.0f} us each, and {timings['cold_us']:,.0f} us behind a layer with waits"
    yield "arrival", arrival
    least, most = (pick(timings["decisions_us"].items(), key=lambda each: each[1]) for pick in (min, max))
    yield "policy", f"{least[1]:,.1f} us ({least[0]}) to {most[1]:,.1f} us ({most[0]}) per layer beyond the simplest"


def _curve(points: list[dict[str, float]], unit: str = "tokens") -> str:
    """The first and the last point."""
    ends = (points[0], points[-1]) if len(points) > 1 else points
    counts = [next(iter(each.values())) for each in ends]
    return " to ".join(f"{each['us']:,.0f} us ({count} {unit})" for each, count in zip(ends, counts, strict=True))
