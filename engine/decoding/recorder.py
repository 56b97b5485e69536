"""A run as an `spmoe-trace`: what was routed where, what was forecast, and what the draft got right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from spmoe.state.events import Forecast
from spmoe.trace.schema import Forecasts, PrefillLine, RejectedLine, TokenLine, TraceLine

Review = Callable[[Sequence[int]], list[tuple[int, int, tuple[Forecast, ...] | None]]]
"""What a draft makes of all tokens of a finished request; see `DraftModel.review`."""


class Lines(Protocol):
    """Where lines are kept: a list, or a file for more than memory should hold."""

    def append(self, line: TraceLine, /) -> None: ...

    def __iter__(self) -> Iterator[TraceLine]: ...


class Recorder:
    """Collects routing while the models run, a pass at a time, and writes it as lines at a request's end."""

    def __init__(self, layers: int, experts: int, lines: Lines | None = None) -> None:
        """`layers` with `experts` each; `lines` of requests that are over are kept there (None: in memory)."""
        self._layers = layers
        self._experts = experts
        self._lines: Lines = [] if lines is None else lines
        self.tokens = 0
        """Token lines so far, of requests that are over."""
        self.forecasts: set[str] = set()
        """The names of the forecasts that they carry."""
        self._request = 0
        self._open: list[TokenLine] = []
        """Token lines of the request under way."""
        self._known: list[bool] = []
        """Of each, whether the draft has proposed what follows."""
        self._routed: list[tuple[list[list[int]], list[list[int]], tuple[Forecast, ...] | None]] = []
        """Of the pass under way, per layer: experts and weights per token, and next-gate forecasts."""
        self._drafted: list[tuple[int, tuple[Forecast, ...] | None]] = []
        """Of the step under way, per drafted token."""

    def routed(
        self,
        layer: int,
        cells: list[list[int]],
        weights: list[list[int]],
        next_gate: tuple[Forecast, ...] | None,
    ) -> None:
        """The routing of a layer: experts and weights (/65536) by rank of each token, forecasts for the next layer."""
        if layer == 0:
            self._routed.clear()
        self._routed.append((cells, weights, next_gate))

    def drafted(self, probability: int, forecasts: tuple[Forecast, ...] | None) -> None:
        """The draft has proposed a token."""
        self._drafted.append((probability, forecasts))

    def begin(self, request: int, prompt: int) -> None:
        """The pass just over has read the `prompt` tokens of a new request."""
        self._request = request
        touched, counts = [], []
        for cells, _, _ in self._routed:
            tokens = [0] * self._experts
            for cell in cells:
                for expert in cell:
                    tokens[expert] += 1
            touched.append(tuple(expert for expert, count in enumerate(tokens) if count))
            counts.append(tuple(count for count in tokens if count))
        self._lines.append(PrefillLine(request, prompt, tuple(touched), tuple(counts)))

    def step(self, position: int, tokens: int, accepted: int, agreed: int, kept: int = 0) -> None:
        """A round is over: it went through `tokens` inputs, the first at `position`.  The first `accepted` drafted
        tokens stand, and the target agreed with the first `agreed` (more, if the request ended among them, or if the
        draft proposed the target's own token, too).  Of the next round the draft has read the first `kept` inputs."""
        rejected = tuple(
            RejectedLine(
                self._cells(index),
                self._forecasts(index),
                self._drafted[index][0] if index < len(self._drafted) else None,
                self._weights(index),
            )
            for index in range(accepted + 1, tokens)
        )
        for index in range(accepted + 1):
            known = index < len(self._drafted)
            self._known.append(known)
            self._open.append(
                TokenLine(
                    self._request,
                    position + index,
                    self._cells(index),
                    index < agreed,
                    self._drafted[index][0] if known else None,
                    self._weights(index),
                    self._forecasts(index),
                    rejected if index == accepted else (),
                )
            )
        self._drafted = self._drafted[tokens : tokens + kept]

    def end(self, tokens: Sequence[int], review: Review | None) -> None:
        """The request is over; `tokens` are its prompt's and those put out.

        Inputs that the draft did not go on from are looked up in its review, where there is a draft.
        """
        if review is not None and not all(self._known):
            seen = review(tokens)
            for index, (line, known) in enumerate(zip(self._open, self._known, strict=True)):
                if not known:
                    proposed, probability, forecasts = seen[line.position]
                    self._open[index] = line._replace(
                        agree=proposed == tokens[line.position + 1],
                        draft_prob=probability,
                        forecasts=_with_draft(line.forecasts, forecasts),
                    )
        for line in self._open:
            self._lines.append(line)
            self.forecasts.update(line.forecasts)
        self.tokens += len(self._open)
        self._open.clear()
        self._known.clear()
        self._drafted.clear()

    def __iter__(self) -> Iterator[TraceLine]:
        return iter(self._lines)

    def _cells(self, token: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(cells[token]) for cells, _, _ in self._routed)

    def _weights(self, token: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(weights[token]) for _, weights, _ in self._routed)

    def _forecasts(self, token: int) -> Forecasts:
        forecasts: dict[str, tuple[Forecast, ...]] = {}
        gates = [next_gate for _, _, next_gate in self._routed[:-1]]
        if gates and all(gate is not None for gate in gates):
            # The forecast that a layer's state gives for the next one is kept with the next one.
            forecasts["next_gate"] = ((), *(gate[token] for gate in gates if gate is not None))
        return _with_draft(forecasts, self._drafted[token][1] if token < len(self._drafted) else None)


def _with_draft(forecasts: Forecasts, draft: tuple[Forecast, ...] | None) -> Forecasts:
    return forecasts if draft is None else {"draft": draft, **forecasts}
