"""Cuts a trace into requests and windows, as speculative decoding would come to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

from spmoe.trace.schema import PrefillLine, RejectedLine, TokenLine


class Routing(NamedTuple):
    """What one layer needs for all tokens of a window: distinct experts in routing order, and tokens per expert."""

    experts: tuple[int, ...]
    tokens: tuple[int, ...]


class Window(NamedTuple):
    """The tokens verified together.

    `inputs` are the verifier's inputs, drafted tokens after the first.  The first `accepted` drafted tokens stand, so
    the step puts out `accepted + 1` tokens; what was drafted behind the end of the request does not.  `stand_ins`
    counts inputs after a rejection whose routing was not recorded, so that the tokens that really stand at those
    positions take their place.
    """

    inputs: tuple[TokenLine | RejectedLine, ...]
    accepted: int
    stand_ins: int

    def routing(self) -> list[Routing]:
        """The needs of every layer, first to last."""
        layers = []
        for first, *drafted in zip(*[line.routed for line in self.inputs], strict=True):
            tokens = dict.fromkeys(first, 1)  # A token's experts are distinct.
            for cell in drafted:
                for expert in cell:
                    if expert in tokens:
                        tokens[expert] += 1
                    else:
                        tokens[expert] = 1
            layers.append(Routing(tuple(tokens), tuple(tokens.values())))
        return layers


def window(lines: Sequence[TokenLine], gamma: int) -> Window:
    """The window at `lines[0]` with up to `gamma` drafted tokens (design: a short one of m lines has gamma m - 1).

    Needs ``lines[:gamma + 1]`` of one request, fewer only where the request ends with them; raises ValueError where
    there is none.  Behind the drafted tokens that stand come the inputs recorded as rejected there, even past the
    request's last line: the draft went on, as it was not known yet that the request would end.
    """
    if not lines:
        raise ValueError("a window needs at least one token line")
    inputs: list[TokenLine | RejectedLine] = list(lines[: gamma + 1])
    drafted = len(inputs) - 1
    accepted = 0
    while accepted < drafted and lines[accepted].agree:
        accepted += 1
    recorded = lines[accepted].rejected[: gamma - accepted]
    inputs[accepted + 1 : accepted + 1 + len(recorded)] = recorded
    stand_ins = max(0, drafted - accepted - len(recorded))
    return Window(tuple(inputs), accepted, stand_ins)


class Round:
    """A round that begins with given lines: the longest window that it may verify, and what its draft reads."""

    def __init__(self, lines: Sequence[TokenLine], gamma: int) -> None:
        """`lines` as in `window`, and behind them as many as the draft may go past the longest window."""
        self.lines = lines
        self.whole = window(lines, gamma)
        self.right = next((place for place, line in enumerate(lines) if not line.agree), len(lines))
        """How many tokens the draft gets right from the round's first one on."""
        self.drafted: int | None = None
        """How many drafted tokens the window holds, once that is settled: what is read from then on lies behind it."""

    def read(self, token: int) -> TokenLine | RejectedLine:
        """What the draft reads as that token of the round, in the window or past it.

        Where it has gone astray past the window, and its inputs are not recorded, it goes over the window once more.
        (What really came there would tell it the future.)
        """
        inputs, drafted = self.whole.inputs, self.drafted
        if drafted is None or token <= drafted:
            return inputs[token]
        past = token - drafted - 1
        if self.right <= drafted:
            return inputs[past % (drafted + 1)]
        return self._beyond[past]

    @cached_property
    def _beyond(self) -> tuple[TokenLine | RejectedLine, ...]:
        """Behind a window that stands; asked for only once that is settled."""
        assert self.drafted is not None
        lines = self.lines[self.drafted + 1 :]
        return window(lines, len(lines) - 1).inputs


class Request:
    """One request of a trace while it is decoded: its prefill, and its token lines as far as they are read."""

    def __init__(self, number: int, prefill: PrefillLine | None, first: TokenLine | None, rest: _Lines) -> None:
        self.number = number
        self.prefill = prefill
        self.position = first.position if first else 0
        self._ahead: deque[TokenLine] = deque([first] if first else [])
        self._rest = rest

    def lines(self, count: int) -> list[TokenLine]:
        """The next `count` lines, fewer at the request's end; they stay until `advance`."""
        while len(self._ahead) < count:
            line = self._rest.next_of(self.number)
            if line is None:
                break
            self._ahead.append(line)
        return [self._ahead[i] for i in range(min(count, len(self._ahead)))]

    def advance(self, tokens: int) -> None:
        """Leave `tokens` lines behind: they are put out."""
        for _ in range(tokens):
            self.position = self._ahead.popleft().position + 1


class _Lines:
    """A trace's lines with one line of pushback."""

    def __init__(self, lines: Iterable[PrefillLine | TokenLine]) -> None:
        self._lines = iter(lines)
        self._held: PrefillLine | TokenLine | None = None

    def pop(self) -> PrefillLine | TokenLine | None:
        line, self._held = self._held, None
        return line if line is not None else next(self._lines, None)

    def next_of(self, request: int) -> TokenLine | None:
        line = self.pop()
        if isinstance(line, TokenLine) and line.request == request:
            return line
        self._held = line
        return None


def requests(lines: Iterable[PrefillLine | TokenLine]) -> Iterator[Request]:
    """The requests of a trace, one after the other; only the lines that a request has at hand are in memory."""
    source = _Lines(lines)
    while (line := source.pop()) is not None:
        if isinstance(line, PrefillLine):
            yield Request(line.request, line, source.next_of(line.request), source)
        else:
            yield Request(line.request, None, line, source)


def fixed_windows(request: Request, gamma: int) -> Iterator[Window]:
    """The windows of a request when every step drafts `gamma` tokens."""
    return windows(request, repeat(gamma))


def windows(request: Request, lengths: Iterator[int]) -> Iterator[Window]:
    """The windows of a request when its steps draft so many tokens, which are taken from `lengths` as they come."""
    while request.lines(1):
        gamma = next(lengths)
        cut = window(request.lines(gamma + 1), gamma)
        yield cut
        request.advance(cut.accepted + 1)
