"""A run of the engine in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from engine.cli.reference import Comparison
from engine.decoding.sampling import Sampling
from engine.plan import Plan
from spmoe.machine.units import format_size
from spmoe.results.metrics import Metrics
from spmoe.results.transfers import Transfers

NOTHING = "-"


def summary(
    plan: Plan, sampling: Sampling, metrics: Metrics, transfers: Transfers, comparison: Comparison | None = None
) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    setting = plan.setting
    yield "policy", f"{plan.recipe.name}: {plan.recipe.summary}"
    if differences := plan.recipe.runtime.explain():
        yield "", f"the original differs in how it runs: {'; '.join(differences)}"
    yield "model", f"{setting.geometry.name}, {describe_pair(plan)}"
    keys = setting.geometry.keys
    size = format_size(plan.slot_bytes)
    yield "cache", f"slots for {setting.slots:,} of {keys:,} experts ({setting.slots / keys:.0%}, {size})"
    reckoned = f"{setting.hardware.name} ({setting.hardware.kind})"
    if plan.options.virtual_time is None:
        device = ", at the host" if plan.device.type == "cuda" else ""
        yield "times", f"measured{device}; the policy reckons with the figures of {reckoned}"
    else:
        yield "times", f"virtual: the cost model's for {reckoned}; nothing was measured"
    yield "tokens", sampling.explain()
    tokens = metrics.tokens + metrics.prefills
    requests = f" for {metrics.requests:,} prompts" if metrics.requests > 1 else ""
    yield "output", f"{tokens:,} {'token' if tokens == 1 else 'tokens'}{requests}"
    if transfers.drafted:
        yield (
            "rounds",
            f"{metrics.steps:,}, each of {metrics.tokens / metrics.steps:.2f} tokens; of {transfers.drafted:,} drafted "
            f"tokens {transfers.acceptance:.1%} were accepted",
        )
    if plan.config.chooses and metrics.steps:
        drafted = transfers.drafted / metrics.steps
        yield (
            "" if transfers.drafted else "rounds",
            f"the policy chose how much to draft: {drafted:.1f} tokens per round, at most {plan.config.gamma}",
        )
    mean = " (mean)" if metrics.prefills > 1 else ""
    yield "TTFT", _number(metrics.ttft_ms, ",.1f", f" ms to the first token{mean}")
    tpot = metrics.tpot_ms
    yield "TPOT", NOTHING if not tpot else f"{tpot:,.2f} ms per further token ({1000 / tpot:,.1f} tokens/s)"
    if needs := metrics.needs:
        named = ((metrics.hits, "hits"), (metrics.late, "late"), (metrics.misses, "misses"))
        shares = ", ".join(f"{part / needs:.1%} {name}" for part, name in named)
        yield "experts", f"{needs:,} needed in decode: {shares}"
    if metrics.host_computed:
        yield "", f"{metrics.host_computed:,} of them computed on the CPU"
    if transfers.loads:
        achieved = _number(transfers.bytes_per_s, ",.2f", " GB/s", 1e9)
        yield (
            "moved",
            f"{format_size(transfers.bytes)} to the slots at {achieved}, "
            f"{_number(transfers.hidden_share, '.1%')} of it hidden behind compute",
        )
    else:
        yield "moved", "nothing"
    if metrics.tokens:
        yield (
            "decode",
            f"{metrics.loads_per_token:.2f} loads per token; of the time the link works "
            f"{_number(metrics.link_utilisation, '.1%')}, the verifier stalls {_number(metrics.stall_fraction, '.1%')}",
        )
    if comparison is not None:
        yield "plain", comparison.explain()


def show(lines: Iterator[tuple[str, str]]) -> str:
    """Lines with their labels in a column."""
    return "\n".join(f"{label:<8}{text}" for label, text in lines)


def describe_pair(plan: Plan) -> str:
    """The draft, the number format and the device."""
    draft = "no draft" if plan.draft_shape is None else f"draft {plan.draft_shape.name}"
    return f"{draft}, {str(plan.dtype).removeprefix('torch.')} on {plan.device}"


def _number(value: float | None, form: str, unit: str = "", scale: float = 1) -> str:
    return NOTHING if value is None else f"{value / scale:{form}}{unit}"
