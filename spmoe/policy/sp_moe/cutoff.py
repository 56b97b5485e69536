"""The analytical cutoff layer (SP-MoE, arXiv 2510.10302): how many leading layers are worth prefetching for.

With n = top-n experts forecast per token, E experts per layer and a cache that holds the share s of all experts, a
layer expects p = E (1 - (1 - n/E)^gamma) (1 - s) prefetches per step: of E experts each is left out by all gamma
draft tokens with probability (1 - n/E)^gamma, and s of those chosen are already there.  The cutoff is the largest
number c of leading layers such that

- space: c p <= slots, whatever is in them now;
- time: for every k <= c, k p loads back to back from the step's start take no longer than gamma draft tokens and
  k - 1 layers, after which layer k - 1 (counted from 0) is reached when nothing stalls.

Everything is compared as a fraction, so the answer is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from spmoe.errors import InputError


@dataclass(frozen=True, slots=True)
class Cutoff:
    """The cutoff and why.  `layers` is c, the smaller of `by_slots` and `by_time`.

    `expected` is p, the prefetches that every layer expects; `share` the share of all experts that the cache holds.
    `first_late` is the smallest k whose loads come too late, None when none does.  Times in nanoseconds.
    """

    layers: int
    by_slots: int
    by_time: int
    first_late: int | None
    expected: Fraction
    share: Fraction
    model_layers: int
    gamma: int
    slots: int
    load_ns: int
    draft_token_ns: int
    layer_ns: int

    def loads_end_ns(self, k: int) -> Fraction:
        """When the expected prefetches of the first `k` layers have arrived, from the step's start."""
        return k * self.expected * self.load_ns

    def reached_ns(self, k: int) -> int:
        """When layer `k` - 1 is reached without stalls, from the step's start."""
        return self.gamma * self.draft_token_ns + (k - 1) * self.layer_ns

    def explain(self) -> tuple[str, ...]:
        """The cutoff in words and numbers, a line each."""
        if self.gamma == 0:
            return (f"cutoff: 0 of {self.model_layers} layers, since nothing is drafted (gamma 0)",)
        return (
            f"cutoff: {self.layers} of {self.model_layers} layers",
            f"expected prefetches per layer: {float(self.expected):.3f} "
            f"(gamma {self.gamma}, the cache holds {float(self.share):.1%} of all experts)",
            f"space: {self.by_slots} of {self.model_layers} layers, with "
            f"{float(self.by_slots * self.expected):.1f} loads for {self.slots} slots{self._next_space()}",
            f"time: {self.by_time} of {self.model_layers} layers{self._next_time()}",
        )

    def _next_space(self) -> str:
        if self.by_slots == self.model_layers:
            return ""
        return f"; one layer more would have {float((self.by_slots + 1) * self.expected):.1f}"

    def _next_time(self) -> str:
        k = self.first_late or self.model_layers
        ends, reached = float(self.loads_end_ns(k)) / 1e6, self.reached_ns(k) / 1e6
        late = "" if self.first_late is None else ": too late"
        return (
            f"; the loads of layers < {k} at {self.load_ns / 1e6:.3f} ms each end at {ends:.3f} ms, "
            f"layer {k - 1} is reached at {reached:.3f} ms ({self.gamma} x {self.draft_token_ns / 1e6:.3f} ms draft "
            f"+ {k - 1} x {self.layer_ns / 1e6:.3f} ms layer){late}"
        )


def analytical_cutoff(
    layers: int,
    experts: int,
    top_n: int,
    gamma: int,
    slots: int,
    load_ns: int,
    draft_token_ns: int,
    layer_ns: int,
) -> Cutoff:
    """The cutoff of a model with `layers` MoE layers of `experts` experts, as the module defines it.

    `slots` counts all layers together.  `load_ns` is one expert's load, `layer_ns` a whole layer including its
    experts.  Without a draft (gamma 0) nothing is forecast and the cutoff is 0; when the cache holds everything it is
    all layers.  Raises InputError for negative numbers, no layers or experts, or top_n outside 1..experts.
    """
    lowest = {"layers": (layers, 1), "experts": (experts, 1), "top_n": (top_n, 1), "gamma": (gamma, 0)}
    lowest |= {"slots": (slots, 0), "load_ns": (load_ns, 0), "draft_token_ns": (draft_token_ns, 0)}
    lowest |= {"layer_ns": (layer_ns, 0)}
    for name, (value, least) in lowest.items():
        if value < least:
            raise InputError(f"cutoff: field {name}: expected at least {least}, got {value}")
    if top_n > experts:
        raise InputError(f"cutoff: field top_n: expected at most {experts} (the experts of a layer), got {top_n}")

    share = min(Fraction(1), Fraction(slots, layers * experts))
    expected = experts * (1 - (1 - Fraction(top_n, experts)) ** gamma) * (1 - share)
    by_slots = layers if expected == 0 else min(layers, slots // expected)
    if gamma == 0:
        by_slots = 0
    first_late = next(
        (k for k in range(1, layers + 1) if k * expected * load_ns > gamma * draft_token_ns + (k - 1) * layer_ns),
        None,
    )
    by_time = layers if first_late is None else first_late - 1
    return Cutoff(
        layers=min(by_slots, by_time),
        by_slots=by_slots,
        by_time=by_time,
        first_late=first_late,
        expected=expected,
        share=share,
        model_layers=layers,
        gamma=gamma,
        slots=slots,
        load_ns=load_ns,
        draft_token_ns=draft_token_ns,
        layer_ns=layer_ns,
    )
