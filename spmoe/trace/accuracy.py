"""How good forecasts are: those that a trace carries, beside what needs no draft and no gate, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple, Protocol

from spmoe.trace.popularity import Uses, count_uses
from spmoe.trace.reader import TraceFile
from spmoe.trace.reliability import Reliability, ReliabilityFold
from spmoe.trace.schema import FORECAST_NAMES, Cell, ModelShape, RejectedLine, TokenLine, Trace
from spmoe.trace.windows import Window, requests, window

POPULARITY, TOKEN_BEFORE = "popularity", "token_before"

Rows = Sequence[Cell]
"""Per layer, the experts named, by rank; () where none is."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the forecasts of one layer are; a rate is None where there is nothing to rate.

    Cells are those with a known routing, one per input; `cells` counts those with a forecast, `coverage` is
    their share.

    - `top1_used`: the expert named first is used; `top1_exact`: it is the one ranked first.
    - `recall`: of the experts used, the share among as many named; `recall_one_more`: among one more, in the cells in
      which so many are named.
    - `window_top1`, `window_topk`: of the distinct experts that a window needs, the share that is among the first, or
      the first k, of any forecast made before the window is verified.
    """

    cells: int
    coverage: float | None
    top1_used: float | None
    top1_exact: float | None
    recall: float | None
    recall_one_more: float | None
    window_top1: float | None
    window_topk: float | None


@dataclass(frozen=True, slots=True)
class ForecastAccuracy:
    """Of each source, an entry per layer; and what they were counted over.

    Sources are the trace's forecasts ("draft", "next_gate"), then "popularity", the experts used most in the other
    requests of the trace (left out where there is only one request), and "token_before", those of the token before;
    for a window, of the last token before it.  `reliability` is that of the trace's forecasts over `rated_layers`.

    `inputs` counts token lines, and the rejected inputs that carry forecasts; `windows` those with at least one drafted
    token; `stand_ins` the inputs in them that stood in for unrecorded ones.
    """

    gamma: int
    inputs: int
    windows: int
    stand_ins: int
    layers: Mapping[str, tuple[Accuracy, ...]]
    reliability: Mapping[str, Reliability]


def rated_layers(layers: int) -> range:
    """The layers that summaries count: all but layer 0, where any draft that shares the target's embeddings does well
    and no gate comes before; layer 0 where there is no other."""
    return range(min(1, layers - 1), layers)


def measure_accuracy(trace: Trace, gamma: int) -> ForecastAccuracy:
    """Rate the forecasts of `trace`, cut into windows of `gamma` drafted tokens; takes two passes.

    Raises InputError where reading the trace does.
    """
    model = trace.header.model
    uses = count_uses(TraceFile(trace.path, ()) if isinstance(trace, TraceFile) else trace)
    sources: dict[str, _Source] = {name: _Recorded(name) for name in FORECAST_NAMES if name in trace.header.forecasts}
    if len(uses.row) > 1:
        sources[POPULARITY] = _Popularity(uses, model)
    sources[TOKEN_BEFORE] = _TokenBefore()
    tallies = {name: [_Tally() for _ in range(model.layers)] for name in sources}
    reliability = {name: ReliabilityFold() for name in sources if name in FORECAST_NAMES}
    known = [0] * model.layers
    inputs = windows = stand_ins = 0

    def take_in(at: _Input) -> None:
        for layer, cell in enumerate(at.line.routed):
            known[layer] += bool(cell)
        for name, source in sources.items():
            for tally, named, cell in zip(tallies[name], source.of_token(at), at.line.routed, strict=False):
                if named and cell:
                    tally.token(named, cell)
        for name, fold in reliability.items():
            _rate(fold, at.line, name)

    for request in requests(trace):
        before: Rows = ()
        while lines := request.lines(gamma + 1):
            cut = window(lines, gamma)
            if len(cut.inputs) > 1:
                windows += 1
                stand_ins += cut.stand_ins
                needs = [frozenset(routing.experts) for routing in cut.routing()]
                for name, source in sources.items():
                    rows = source.of_window(cut, _Input(request.number, before, lines[0]))
                    for layer, tally in enumerate(tallies[name]):
                        tally.window([row[layer] for row in rows if row[layer]], needs[layer], model.top_k)
            for line in lines[: cut.accepted + 1]:
                take_in(_Input(request.number, before, line))
                inputs += 1
                previous = before = line.routed
                for rejected in line.rejected:
                    if rejected.forecasts:
                        take_in(_Input(request.number, previous, rejected))
                        inputs += 1
                    previous = rejected.routed
            request.advance(cut.accepted + 1)
    return ForecastAccuracy(
        gamma=gamma,
        inputs=inputs,
        windows=windows,
        stand_ins=stand_ins,
        layers={
            name: tuple(tally.result(cells) for tally, cells in zip(row, known, strict=True))
            for name, row in tallies.items()
        },
        reliability={name: fold.result() for name, fold in reliability.items()},
    )


class _Input(NamedTuple):
    """An input of the verifier; `before` is the routing of the one before it in its request, () for the first."""

    request: int
    before: Rows
    line: TokenLine | RejectedLine


class _Source(Protocol):
    """Names experts: for a token, and for a window (in one or more forecasts) before it is verified.

    What has nothing to say gives no rows, or empty cells.
    """

    def of_token(self, at: _Input) -> Rows: ...

    def of_window(self, cut: Window, at: _Input) -> Sequence[Rows]: ...


class _Recorded:
    """A forecast that the lines carry."""

    def __init__(self, name: str) -> None:
        self._name = name

    def of_token(self, at: _Input) -> Rows:
        return self._rows(at.line)

    def of_window(self, cut: Window, at: _Input) -> Sequence[Rows]:
        # The draft runs on all tokens but the one that it proposes last.
        inputs = cut.inputs[:-1] if self._name == "draft" else cut.inputs
        return [rows for line in inputs if (rows := self._rows(line))]

    def _rows(self, line: TokenLine | RejectedLine) -> Rows:
        return [tuple([expert for expert, _ in forecast]) for forecast in line.forecasts.get(self._name, ())]


class _Popularity:
    """The experts that the other requests use most."""

    def __init__(self, uses: Uses, model: ModelShape) -> None:
        @lru_cache(maxsize=1)
        def ranked(request: int) -> Rows:
            rows: list[list[int]] = [[] for _ in range(model.layers)]
            for key in uses.popular(request):
                layer, expert = divmod(key, model.experts)
                rows[layer].append(expert)
            return [tuple(row) for row in rows]

        self._ranked = ranked

    def of_token(self, at: _Input) -> Rows:
        return self._ranked(at.request)

    def of_window(self, cut: Window, at: _Input) -> Sequence[Rows]:
        return [self._ranked(at.request)]


class _TokenBefore:
    """What the token before used."""

    def of_token(self, at: _Input) -> Rows:
        return at.before

    def of_window(self, cut: Window, at: _Input) -> Sequence[Rows]:
        return [at.before] if at.before else []


def _rate(fold: ReliabilityFold, line: TokenLine | RejectedLine, name: str) -> None:
    forecasts = line.forecasts.get(name, ())
    for layer in rated_layers(len(forecasts)) if forecasts else ():
        if forecasts[layer] and line.routed[layer]:
            expert, probability = forecasts[layer][0]
            fold.add(probability, expert == line.routed[layer][0], expert in line.routed[layer])


@dataclass(slots=True)
class _Tally:
    """What is counted of one source in one layer."""

    cells: int = 0
    first_used: int = 0
    first_exact: int = 0
    used: int = 0
    named: int = 0
    wide_used: int = 0
    wide_named: int = 0
    window_needs: int = 0
    window_first: int = 0
    window_named: int = 0

    def token(self, named: Cell, cell: Cell) -> None:
        size = len(cell)
        right = len(set(named[:size]).intersection(cell))
        self.cells += 1
        self.first_used += named[0] in cell
        self.first_exact += named[0] == cell[0]
        self.used += size
        self.named += right
        if len(named) > size:
            self.wide_used += size
            self.wide_named += right + (named[size] in cell)

    def window(self, forecasts: Sequence[Cell], needs: frozenset[int], top_k: int) -> None:
        if forecasts:
            self.window_needs += len(needs)
            self.window_first += len(needs.intersection([named[0] for named in forecasts]))
            self.window_named += len(needs.intersection([each for named in forecasts for each in named[:top_k]]))

    def result(self, known: int) -> Accuracy:
        """`known`: cells with a routing."""
        return Accuracy(
            cells=self.cells,
            coverage=_share(self.cells, known),
            top1_used=_share(self.first_used, self.cells),
            top1_exact=_share(self.first_exact, self.cells),
            recall=_share(self.named, self.used),
            recall_one_more=_share(self.wide_named, self.wide_used),
            window_top1=_share(self.window_first, self.window_needs),
            window_topk=_share(self.window_named, self.window_needs),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


RATES = tuple(each.name for each in fields(Accuracy) if each.name != "cells")
"""The fields of `Accuracy` that are rates."""
