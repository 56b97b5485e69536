"""Durations that were measured with one pair of models on one machine: the part of a profile that knows a model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.fields import Fields

_US: Final = 1000


@dataclass(frozen=True, slots=True)
class Curve:
    """Durations (ns) at some counts of tokens, ascending: linear in between, and on at the slope of the last two.

    Below the first count it is the first duration.  Raises ValueError without points, or where they do not ascend.
    """

    points: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        counts = [count for count, _ in self.points]
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"expected points with ascending counts, got {self.points}")

    def ns(self, count: int) -> int:
        """The duration at `count`, rounded up; at least 0."""
        points = self.points
        place = bisect_left(points, (count, 0))
        if place < len(points) and points[place][0] == count:
            return points[place][1]
        if place == 0 or len(points) == 1:
            return points[min(place, len(points) - 1)][1]
        (left, low), (right, high) = points[place - 1 : place + 1] if place < len(points) else points[-2:]
        return max(0, low - (low - high) * (count - left) // (right - left))


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the parts of a round take for `model` and `draft` (None: no draft), `bits` per weight.

    Times in ns.  `layer`: attention, router and bookkeeping of a layer by the tokens of the pass; `entry` what the
    first layer takes besides; `expert`: one expert in a slot by its tokens; `round`: choosing tokens and all else
    between two rounds, by the tokens verified.  `draft_token`: by the tokens that the draft reads for it;
    `forecast`: what forecasts for one layer add to it.  `landing`: what each load that arrives costs the thread that
    drives the run; `cold`: what the work behind a layer takes more in which it waited; `draft_landing`: what each load
    costs while the draft runs; `result`: what a result of the CPU costs; `notice`: how long after an arrival the thread
    knows of it, while it waits.  `next_gate` and `gates`: what a layer takes more to hear these of the router, by
    tokens.  `decisions`: what a policy's scheduler takes per layer, on average, beyond the simplest with nothing to
    load, under which the rest was timed.  `host_expert` by tokens, and `handover` before the first: None where experts
    were not computed on the CPU.

    Where nothing else is said these are medians.  Work takes longer on average than in the median: `jitter` is by what
    factor.  `transfer` is by what factor a load takes longer beside a run than alone.
    """

    model: str
    draft: str | None
    bits: float
    layer: Curve
    entry: int
    expert: Curve
    round: Curve
    draft_token: Curve | None
    forecast: int
    landing: int
    cold: int
    draft_landing: int
    result: int
    notice: int
    next_gate: Curve
    gates: Curve
    decisions: Mapping[str, int]
    host_expert: Curve | None
    handover: int
    transfer: Fraction
    jitter: Fraction

    def fit(self, model: str, draft: str | None, bits: float) -> bool:
        """Whether they are those of this model at this width, with this draft or without any."""
        return (self.model, self.bits) == (model, bits) and draft in (None, self.draft)

    @classmethod
    def read(cls, fields: Fields) -> Timings:
        """The section "timings" of a profile, in microseconds there; InputError for whatever is wrong with it."""
        drafted = not fields.is_null("draft")
        hosted = not fields.is_null("host_expert")
        timings = cls(
            model=fields.text("model"),
            draft=fields.text("draft") if drafted else None,
            bits=fields.one_of("bits", parse_bits),
            layer=_curve(fields, "layer"),
            entry=_ns(fields, "entry_us"),
            expert=_curve(fields, "expert"),
            round=_curve(fields, "round"),
            draft_token=_curve(fields, "draft_token") if drafted else None,
            forecast=_ns(fields, "forecast_us"),
            landing=_ns(fields, "landing_us"),
            cold=_ns(fields, "cold_us"),
            draft_landing=_ns(fields, "draft_landing_us"),
            result=_ns(fields, "result_us"),
            notice=_ns(fields, "notice_us"),
            next_gate=_curve(fields, "next_gate"),
            gates=_curve(fields, "gates"),
            decisions=_by_name(fields.section("decisions_us")),
            host_expert=_curve(fields, "host_expert") if hosted else None,
            handover=_ns(fields, "handover_us"),
            transfer=Fraction(fields.number("transfer")),
            jitter=Fraction(fields.number("jitter")),
        )
        fields.done()
        return timings


def _ns(fields: Fields, name: str) -> int:
    return int(fields.number(name, zero=True) * _US)


def _by_name(fields: Fields) -> Mapping[str, int]:
    found = {name: _ns(fields, name) for name in fields}
    fields.done()
    return MappingProxyType(found)


def _curve(fields: Fields, name: str) -> Curve:
    points: Sequence[Fields] = fields.sections(name)
    found = []
    for point in points:
        found.append((point.whole("tokens"), _ns(point, "us")))
        point.done()
    try:
        return Curve(tuple(found))
    except ValueError:
        raise InputError(
            f"{fields.place}: field {fields.path}{name}: expected points with ascending tokens, at least one"
        ) from None
