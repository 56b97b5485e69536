"""What routers, draft and target are made to say, whatever the models compute: the passes of a trace.

A run that follows a script does all of the work of a real one; only the outcome is the trace's.  So a trace can be
timed on a machine without the weights that it was recorded from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, repeat
from typing import NamedTuple

import torch

from spmoe.state.events import Forecast
from spmoe.trace.gates import gate_of
from spmoe.trace.schema import Cell, PrefillLine, RejectedLine, TokenLine
from spmoe.trace.windows import Round

Cells = list[list[int]]
"""Experts by rank of each token: [tokens][top_k]."""


class Spoken(NamedTuple):
    """What the router of a layer said of the T tokens of a pass, on the device and in plain numbers.

    `experts` (int64) and `weights` are [T, top_k]; `shares` are weights over 65536, as `gates` are, where a policy asks
    for them; `next_gate` is what the next layer's router would say, where somebody asks.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    cells: Cells
    shares: list[list[int]]
    next_gate: tuple[Forecast, ...] | None
    gates: tuple[Forecast, ...]


class Script:
    """The lines of one pass after the other; the driver's effects ask for its parts."""

    def __init__(self, top_k: int, device: torch.device) -> None:
        """Routing is put on `device` when a pass is set, so that no layer has to wait for it."""
        self._top_k = top_k
        self._device = device
        self._cells: list[Cells] = []
        self._experts: torch.Tensor
        self._round: Round | None = None
        """None while a prompt is read."""

    def prompt(self, line: PrefillLine) -> None:
        """The pass to come reads a prompt: which token goes to which expert is not known, only how many to each."""
        self._round = None
        self._set([_spread(line, layer, self._top_k) for layer in range(len(line.touched))])

    def round(self, lines: Sequence[TokenLine], gamma: int) -> Round:
        """The passes to come are a round that begins with these lines, and verifies at most `gamma` drafted tokens.

        Raises ValueError where a line does not tell all experts of its token.
        """
        self._round = this = Round(lines, gamma)
        layers = len(lines[0].routed)
        self._set([[_whole(line.routed[layer], self._top_k) for line in this.whole.inputs] for layer in range(layers)])
        return this

    def routed(self, layer: int, spoken: Spoken) -> Spoken:
        """What the trace has in place of `spoken`; the weights stay those that were computed."""
        tokens = len(spoken.cells)
        spoken = spoken._replace(experts=self._experts[layer, :tokens], cells=self._cells[layer][:tokens])
        if self._round is None:
            return spoken
        self._round.drafted = tokens - 1
        inputs = self._round.whole.inputs[:tokens]
        next_gate = gates = None
        if spoken.next_gate is not None:
            next_gate = tuple([_forecasts(line, "next_gate", len(self._cells))[layer + 1] for line in inputs])
        if spoken.gates:
            gates = tuple([gate_of(line, layer) for line in inputs])
        return spoken._replace(next_gate=next_gate, gates=gates or ())

    def forecasts(self, token: int, first: int, end: int) -> tuple[Forecast, ...]:
        """The draft's for layers `first` to `end` (exclusive), as it read the round's input `token`."""
        return _forecasts(self._read(token), "draft", len(self._cells))[first:end]

    def probability(self, token: int) -> int | None:
        """The draft's (/65536) of the token that it proposes behind the round's input `token`."""
        return self._read(token).draft_prob

    def _read(self, token: int) -> TokenLine | RejectedLine:
        """What the draft reads as the round's input `token`."""
        assert self._round is not None
        return self._round.read(token)

    def _set(self, layers: list[Cells]) -> None:
        self._cells = layers
        self._experts = torch.tensor(layers).to(self._device)


def _forecasts(line: TokenLine | RejectedLine, name: str, layers: int) -> tuple[Forecast, ...]:
    nothing: Forecast = ()
    return line.forecasts.get(name) or (nothing,) * layers


def _whole(cell: Cell, top_k: int) -> list[int]:
    if len(cell) != top_k:
        raise ValueError(f"expected {top_k} experts of every token, got {len(cell)}")
    return list(cell)


def _spread(line: PrefillLine, layer: int, top_k: int) -> Cells:
    """Experts for each token of a prompt, so that each is chosen as often as the line says or, where it does not, all
    of those touched alike."""
    routed = line.prompt_tokens * top_k
    touched = line.touched[layer]
    counts = line.counts[layer] if line.counts is not None else (-(-routed // len(touched)),) * len(touched)
    chosen = list(islice(chain.from_iterable(map(repeat, touched, counts)), routed))
    # Strided, so that an expert's tokens are different ones.
    return [chosen[token :: line.prompt_tokens] for token in range(line.prompt_tokens)]
