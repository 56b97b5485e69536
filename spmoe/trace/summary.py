"""What a trace holds, in numbers, from one pass over its lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spmoe.errors import InputError
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, Trace


@dataclass(frozen=True, slots=True)
class ForecastSummary:
    """How one named forecast did."""

    coverage: float  # cells with a forecast / cells with a known routing
    first_rank_accuracy: float | None  # forecasts whose first expert was routed to / forecasts; None without any


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """The numbers that `sim check` shows."""

    tokens: int
    requests: int
    prefills: int  # requests with a prefill line
    longest_request: int  # what the header says (`context`), else tokens in context at its end: prompt and token lines
    agreement: float  # share of token lines with `agree`
    empty_cells: int
    distinct_experts: float  # experts used at least once, mean over layers
    forecasts: Mapping[str, ForecastSummary]
    rejected_inputs: int  # recorded inputs that followed rejected draft tokens


def summarise(trace: Trace) -> TraceSummary:
    """Goes through `trace` once, holding counts only.

    Raises InputError where reading the trace does, and where a request is longer than the header says any is.
    """
    shape, limit = trace.header.model, trace.header.context
    tokens = requests = prefills = longest = context = agreed = empty = rejected = 0
    request = -1
    used: list[set[int]] = [set() for _ in range(shape.layers)]
    made = dict.fromkeys(trace.header.forecasts, 0)
    right = dict.fromkeys(trace.header.forecasts, 0)
    for line in trace:
        if line.request != request:
            request = line.request
            requests += 1
            context = line.prompt_tokens if isinstance(line, PrefillLine) else line.position
        if isinstance(line, PrefillLine):
            prefills += 1
            continue
        tokens += 1
        context = max(context, line.position) + 1
        longest = max(longest, context)
        if limit is not None and context > limit:
            where = f"{trace.path}: " if isinstance(trace, TraceFile) else ""
            raise InputError(
                f"{where}field context: expected {limit} tokens at most, as the header says, got {context} in "
                f"request {request}"
            )
        agreed += line.agree
        empty += line.routed.count(())
        rejected += len(line.rejected)
        for seen, cell in zip(used, line.routed, strict=True):
            seen.update(cell)
        for name, layers in line.forecasts.items():
            for forecast, cell in zip(layers, line.routed, strict=True):
                if forecast and cell:
                    made[name] += 1
                    right[name] += forecast[0][0] in cell
    cells = tokens * shape.layers - empty
    return TraceSummary(
        tokens=tokens,
        requests=requests,
        prefills=prefills,
        longest_request=longest if limit is None else limit,
        agreement=agreed / tokens,
        empty_cells=empty,
        distinct_experts=sum(map(len, used)) / shape.layers,
        forecasts={
            name: ForecastSummary(_rate(count, cells) or 0.0, _rate(right[name], count)) for name, count in made.items()
        },
        rejected_inputs=rejected,
    )


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None
