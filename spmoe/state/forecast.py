"""What is learned or predicted about needs to come."""

from __future__ import annotations

from collections.abc import Iterable

from spmoe.state.events import (
    DraftPredicted,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    RequestBegun,
    StepBegun,
    TokenDrafted,
)

Wish = tuple[int, int, int]
"""A key, the time by which it will be needed (ns, or any other order of time), and a weight from the forecasts."""

NOTHING: tuple[Wish, ...] = ()


class Forecast:
    """Observes events and wishes for experts; this base knows nothing and wishes for none.

    A wish is an opinion: the scheduler leaves out what is resident or on its way, and queues the rest.
    """

    protects = False
    """Whether a wish for a resident counts as a use of it."""

    expires = False
    """Whether a queued prefetch that its layer turns out not to need is useless from then on."""

    replaces = False
    """Whether new wishes take the place of all prefetches that are still queued."""

    refines = False
    """Whether what the target's own state says of a layer takes the place of prefetches still queued for it."""

    most: int | None = None
    """Of what the target's own state says, only this many experts that are not there yet are fetched; None for all."""

    looks_ahead = False
    """Whether `top_up` ever has a wish."""

    now_or_never = False
    """Whether a wish that nobody may leave for is dropped instead of kept in the queue."""

    predicted_layers = 0
    """For how many leading layers the draft should report forecasts."""

    predicted_group = 1
    """How many layers make a report."""

    def request_begun(self, event: RequestBegun) -> Iterable[Wish]:
        """A request starts: what should be there before its first layer."""
        return NOTHING

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        """A prompt is about to be read."""
        return NOTHING

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        """A step starts that will draft `gamma` tokens, or about as many."""

    def token_drafted(self, event: TokenDrafted, chance: int) -> None:
        """The draft proposed a token, which stands with that chance (/65536) where those before it do."""

    def settled(self, drafted: int) -> None:
        """The window holds so many drafted tokens; what the draft reads behind them lies past it."""

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        """The draft says what its token will need in a layer."""
        return NOTHING

    def gate_predicted(self, event: GatePredicted) -> Iterable[Wish]:
        """The target's own state says what the next layer will need."""
        return NOTHING

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        """The truth about a layer; wishes queue behind its own demand loads."""
        return NOTHING

    def step_ended(self, stands: int) -> None:
        """The window is verified; of the next one the draft has read the first `stands` tokens already."""

    def layer_done(self, event: LayerDone) -> Iterable[Wish]:
        """The current layer has computed."""
        return NOTHING

    def top_up(self, time: int, queued: int, submitted: int) -> Iterable[Wish]:
        """More wishes, for those who know far ahead; asked after each event (at `time`), with `queued` loads in the
        queue and `submitted` batches on the link."""
        return NOTHING
