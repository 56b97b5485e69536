"""What all stages found, in one small file and in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.on_gpu.files import NOT_ON_A_GPU, read_stage, write_json
from benchmarks.on_gpu.stages import Stage

NAME: Final = "summary.json"


class _Outcome(Protocol):
    @property
    def stage(self) -> Stage: ...
    @property
    def state(self) -> str: ...
    @property
    def why(self) -> str: ...


def summarise(outcomes: Sequence[_Outcome], known: Sequence[Stage], device: str, out: Path) -> str:
    """Writes the file, of all stages that have left something there; returns the lines."""
    told = {each.stage.name: (each.state, each.why) for each in outcomes}
    rows, found, machines = [], {}, set()
    for stage in known:
        left = read_stage(out, stage)
        state, why = told.get(stage.name, ("kept" if left else "not asked for", ""))
        rows.append({"stage": stage.name, "state": state, **({"why": why} if why else {})})
        if left is not None and left["state"] == "done":
            rows[-1]["seconds"] = left["seconds"]
            machines.add(left["machine"])
            found[stage.name] = left["result"]
    headlines = dict(_headlines(found))
    document = {
        "what": "python -m benchmarks.gpu: what its stages found, in short",
        "device": device,
        **({} if device == "cuda" else {"note": NOT_ON_A_GPU}),
        "machines": sorted(machines),
        "stages": rows,
        "headlines": headlines,
    }
    write_json(out / NAME, document)
    lines = [f"{name}: {text}" for name, text in headlines.items()]
    return "\n".join([*([] if device == "cuda" else [f"note: {NOT_ON_A_GPU}"]), *lines])


def _headlines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each stage that has something to say."""
    for name, result in found.items():
        if "left_out" in result and name != "offload":
            yield name, f"left out: {result['left_out']}"
        elif name == "checks":
            yield name, _checks(result)
        elif name == "link":
            ratios = [each["ratio"] for each in result["batches"]]
            fastest = max(each["link_gb_per_s"] for each in result["batches"])
            yield name, f"{min(ratios):.0%} to {max(ratios):.0%} of bare copies, up to {fastest:.1f} GB/s"
        elif name.endswith(".profile"):
            link = result["link"]
            yield name, f"{link['bandwidth_gb_per_s']:.2f} GB/s behind {link['latency_us']:.1f} us"
        elif "policies" in result and "slots" in result:
            yield name, f"{result['slots']} of {result['of']} experts in slots; " + _policies(result["policies"])
        elif name == "offload":
            yield name, _offload(result)
        elif name == "kernels":
            yield name, f"a copy within the device moves {result['copy_gb_per_s']:,.0f} GB/s; " + _kernels(result)
        elif name == "fidelity":
            tau = result["kendall_tau"]
            yield (
                name,
                f"{len(result['policies'])} predictions, off by {result['median_error']:.1%} at the median and "
                f"{result['max_error']:.1%} at most, Kendall tau {'-' if tau is None else f'{tau:.2f}'}",
            )


def _checks(result: Mapping[str, Any]) -> str:
    tests = result["tests"]
    more = (
        tests.get("left_out") or f"{tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped"
    )
    wrong = [name for name, each in result["checks"].items() if each != "passed"]
    return f"{result['passed']} of {result['of']} passed{', not: ' + '; '.join(wrong) if wrong else ''}; tests: {more}"


def _policies(policies: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {each['tpot_ms']:.1f} ms"
        + ("" if each["hidden_share"] is None else f" ({each['hidden_share']:.0%} hidden, {each['gb_per_s']:.1f} GB/s)")
        for name, each in policies.items()
    )


def _offload(result: Mapping[str, Any]) -> str:
    parts = []
    for row in result["rows"]:
        ours = ", ".join(f"{name} {each['tpot_ms']:.1f} ms" for name, each in row["engine"].items())
        theirs = "".join(
            f", accelerate {name} {each['tpot_ms']:.1f} ms" for name, each in row.get("accelerate", {}).items()
        )
        parts.append(f"cache {row['cache']:.0%}: {ours}{theirs}")
    return "; ".join([*parts, *([result["left_out"]] if "left_out" in result else [])])


def _kernels(result: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {min(row['of_copy'] for row in each['measured']):.0%} to "
        f"{max(row['of_copy'] for row in each['measured']):.0%} of it"
        for name, each in result["models"].items()
    )
