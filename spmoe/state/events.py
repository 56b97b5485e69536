"""Events: what a driver reports to the scheduler, in the order given in ``docs/contract.md``.

Every event carries `time`, integer nanoseconds since the run began.  Times never decrease.  Probabilities are integers
over 65536.  Events are immutable, compare by value and are all that the scheduler ever learns from outside, so a log of
them is enough to repeat every decision.
"""

from __future__ import annotations

from typing import NamedTuple

Forecast = tuple[tuple[int, int], ...]
"""Experts of one layer that one token is expected to need, by rank: (expert, probability / 65536)."""


class RequestBegun(NamedTuple):
    """A request starts.

    `popular` ranks expert keys by how often *other* requests used them, most used first; empty unless the recipe needs
    popularity.
    """

    time: int
    request: int
    popular: tuple[int, ...] = ()


class PrefillBegun(NamedTuple):
    """The target reads a prompt of `tokens` tokens; its layers follow as `LayerReached`.

    `touched` holds, per layer, the experts that the prompt will use, for recipes that know the future; else empty.
    """

    time: int
    tokens: int
    touched: tuple[tuple[int, ...], ...] = ()


class PrefillEnded(NamedTuple):
    """The prompt is read and the first token is known."""

    time: int


class StepBegun(NamedTuple):
    """A draft-then-verify round starts.

    At most `limit` tokens may be drafted: what is left of the request less one, and never more than configured.
    """

    time: int
    limit: int


class DraftPredicted(NamedTuple):
    """The draft got through some layers on its token number `token` (0 based; past the window it counts on).

    `forecasts` are what the target's routers of `layer` and those after it say to the draft's states.
    """

    time: int
    token: int
    layer: int
    forecasts: tuple[Forecast, ...]


class TokenDrafted(NamedTuple):
    """The draft proposed a token, with probability `prob` (/65536; None where it is not known)."""

    time: int
    token: int
    prob: int | None


class LayerReached(NamedTuple):
    """The routing of MoE layer `layer` is known for all tokens of the window (or of the prompt).

    `experts` are the distinct experts in routing order (token by token, rank by rank), those of a prompt by ascending
    id; `tokens` says how many tokens go to each of them.  `gates` holds, per token, the gate's probabilities by rank
    (of its chosen experts only, where no more is known), for recipes that learn from them; else it is empty.  For a
    prompt it may hold one entry that stands for all tokens.
    """

    time: int
    layer: int
    experts: tuple[int, ...]
    tokens: tuple[int, ...]
    gates: tuple[Forecast, ...] = ()


class GatePredicted(NamedTuple):
    """The router of `layer` applied to the target's state one layer before: a forecast per token of the window."""

    time: int
    layer: int
    forecasts: tuple[Forecast, ...]


class Computed(NamedTuple):
    """These experts of a layer that runs in waves are done: their slots may be reused for the rest of the layer."""

    time: int
    layer: int
    experts: tuple[int, ...]


class HostComputed(NamedTuple):
    """The CPU has computed an expert of the layer: it worked on it from `started` to `ended`, and the driver learned of
    it at `time`."""

    time: int
    layer: int
    expert: int
    started: int
    ended: int


class LayerDone(NamedTuple):
    """All experts of the layer have computed.

    `waits` are the times (from, to) in which the GPU had nothing to compute, since the layer before was done.
    """

    time: int
    layer: int
    waits: tuple[tuple[int, int], ...]


class BatchArrived(NamedTuple):
    """All loads of a batch are in their slots; the link worked on it from `started` to `ended`.

    The driver learned of it at `time`: at `ended` in a simulation, later where it has to ask.
    """

    time: int
    batch: int
    started: int
    ended: int


class BatchFailed(NamedTuple):
    """A batch did not arrive; nothing of it may be used."""

    time: int
    batch: int


class LinkAwaited(NamedTuple):
    """Nothing of `layer` can compute before something arrives: the draft might go on meanwhile, past the window."""

    time: int
    layer: int


class LeadStands(NamedTuple):
    """The window stands, and of the next one the draft has read the first `tokens` already, past this one."""

    time: int
    tokens: int


class StepEnded(NamedTuple):
    """The window is verified: the first `accepted` drafted tokens stand, and one more token came from the target."""

    time: int
    accepted: int


Event = (
    RequestBegun
    | PrefillBegun
    | PrefillEnded
    | StepBegun
    | DraftPredicted
    | TokenDrafted
    | LayerReached
    | GatePredicted
    | Computed
    | HostComputed
    | LayerDone
    | BatchArrived
    | BatchFailed
    | LinkAwaited
    | LeadStands
    | StepEnded
)
