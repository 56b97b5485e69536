"""Routing that a trace forces on the passes of a target, whatever its routers compute."""

from __future__ import annotations

from itertools import chain, islice, repeat

import torch

from engine.decoding.request import RouterOutput
from spmoe.state.events import Forecast
from spmoe.trace.gates import gate_of
from spmoe.trace.schema import Cell, PrefillLine, RejectedLine, TokenLine
from spmoe.trace.windows import Round

Cells = list[list[int]]
"""Experts by rank of each token: [tokens][top_k]."""


class ForcedRouting:
    """The routing of one pass after the other."""

    def __init__(self, top_k: int, device: torch.device) -> None:
        """Routing is put on `device` when a pass is set, so that no layer has to wait for it."""
        self._top_k = top_k
        self._device = device
        self._cells: list[Cells] = []
        self._experts: torch.Tensor
        self._round: Round | None = None
        """None while a prompt is read."""

    def set_prompt(self, line: PrefillLine) -> None:
        """The pass to come reads a prompt: which token goes to which expert is not known, only how many to each."""
        self._round = None
        self._set([_spread(line, layer, self._top_k) for layer in range(len(line.touched))])

    def set_round(self, this: Round) -> None:
        """The pass to come verifies a window of this round.

        Raises ValueError where a line does not have all experts of its token.
        """
        self._round = this
        inputs = this.whole.inputs
        layers = len(inputs[0].routed)
        self._set([[_whole(line.routed[layer], self._top_k) for line in inputs] for layer in range(layers)])

    def routed(self, layer: int, output: RouterOutput) -> RouterOutput:
        """What the trace has in place of `output`; the weights stay those that were computed."""
        tokens = len(output.chosen)
        output = output._replace(experts=self._experts[layer, :tokens], chosen=self._cells[layer][:tokens])
        if self._round is None:
            return output
        self._round.drafted = tokens - 1
        inputs = self._round.whole.inputs[:tokens]
        next_gate = gates = None
        if output.next_gate is not None:
            next_gate = tuple([self.forecasts(line, "next_gate")[layer + 1] for line in inputs])
        if output.gates:
            gates = tuple([gate_of(line, layer) for line in inputs])
        return output._replace(next_gate=next_gate, gates=gates or ())

    def forecasts(self, line: TokenLine | RejectedLine, name: str) -> tuple[Forecast, ...]:
        """Those of that name for all layers; empty ones where the line has none."""
        nothing: Forecast = ()
        return line.forecasts.get(name) or (nothing,) * len(self._cells)

    def _set(self, layers: list[Cells]) -> None:
        self._cells = layers
        self._experts = torch.tensor(layers).to(self._device)


def _whole(cell: Cell, top_k: int) -> list[int]:
    if len(cell) != top_k:
        raise ValueError(f"expected {top_k} experts of every token, got {len(cell)}")
    return list(cell)


def _spread(line: PrefillLine, layer: int, top_k: int) -> Cells:
    """Experts for each token of a prompt, so that each is chosen as often as the line has it or, where it does not, all
    of those touched alike."""
    routed = line.prompt_tokens * top_k
    touched = line.touched[layer]
    counts = line.counts[layer] if line.counts is not None else (-(-routed // len(touched)),) * len(touched)
    chosen = list(islice(chain.from_iterable(map(repeat, touched, counts)), routed))
    # Strided, so that an expert's tokens are different ones.
    return [chosen[token :: line.prompt_tokens] for token in range(line.prompt_tokens)]
