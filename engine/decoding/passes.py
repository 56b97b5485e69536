"""Forward passes as the driver resumes them: over a prompt, and over a window with the draft's passes around it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from engine.decoding.draft_model import Poll
from engine.decoding.drafter import Drafter
from engine.decoding.layer_experts import LayerExperts
from engine.decoding.ngram_drafter import NgramDrafter
from engine.decoding.request import Acceptance, Request
from engine.decoding.target_model import TargetModel
from spmoe.drive.step import Routed
from spmoe.state.events import Forecast


class PromptPass:
    """The target reads a prompt.  Use it in a `with` block: whatever happens, its end leaves no pass under way."""

    def __init__(self, target: TargetModel, request: Request) -> None:
        self._target = target
        self._request = request
        self.tokens = len(request.prompt) - target.context
        self.context = len(request.prompt)
        self.verified = 1
        self.new: list[int] = []
        """The token that follows, if the request puts it out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._target.cancel()

    def attention(self, layer: int) -> tuple[Routed, LayerExperts]:
        """Goes on to the router of a layer."""
        if layer == 0:
            self._target.start_prompt(self._request)
        return self._target.next_layer()

    def accept(self) -> int:
        """Chooses the token that follows."""
        self.new = self._request.prompt_read(self._target.logits())
        return 0


class RoundPass:
    """Drafting, and verifying what was drafted.  Use it in a `with` block, as `PromptPass`."""

    def __init__(self, target: TargetModel, drafter: Drafter | NgramDrafter | None, request: Request) -> None:
        """`drafter` is None where nothing is drafted."""
        self._target = target
        self._drafter = drafter
        self._request = request
        self._position = request.position
        if drafter is not None:
            drafter.begin_round(self._position)
        self._window: int | None = None
        """How many drafted tokens are verified, once that is settled."""
        self._acceptance: Acceptance
        self._kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._target.cancel()
        if self._drafter is not None:
            self._drafter.cancel()

    @property
    def tokens(self) -> int:
        """How many tokens the target reads: the pending one and those drafted."""
        return 1 + self.drafted

    @property
    def context(self) -> int:
        """How many tokens of the request there are when it has read them."""
        return self._position + self.tokens

    @property
    def verified(self) -> int:
        """All of them are."""
        return self.tokens

    @property
    def drafted(self) -> int:
        """How many drafted tokens the window holds."""
        if self._window is not None:
            return self._window
        return 0 if self._drafter is None else len(self._drafter.proposals)

    @property
    def acceptance(self) -> Acceptance:
        """What became of them."""
        return self._acceptance

    @property
    def kept(self) -> int:
        """How many tokens of the next window the draft has read past this one."""
        return self._kept

    @property
    def draft_reads(self) -> int:
        """How many tokens the draft reads for the one that it proposes."""
        return 0 if self._drafter is None else self._drafter.reads

    def draft_layers(self, token: int, first: int, end: int, poll: Poll) -> tuple[Forecast, ...]:
        """As `Drafter.draft_layers`."""
        assert self._drafter is not None
        return self._drafter.draft_layers(token, first, end, poll)

    def draft_token(self, token: int, poll: Poll) -> int | None:
        """As `Drafter.draft_token`."""
        assert self._drafter is not None
        return self._drafter.draft_token(token, poll)

    def shorten(self, drafted: int) -> None:
        """The window holds the first `drafted` of the tokens drafted."""
        self._window = drafted

    def attention(self, layer: int) -> tuple[Routed, LayerExperts]:
        """Goes on to the router of a layer; with layer 0, the window is settled."""
        if layer == 0:
            self._window = self.drafted
            proposals = [] if self._drafter is None else self._drafter.proposals[: self._window]
            inputs = [self._request.tokens[-1], *(each.token for each in proposals)]
            self._target.start_window(inputs, self._request)
        return self._target.next_layer()

    def accept(self) -> int:
        """Goes on to the end, and chooses what is put out; returns how many drafted tokens stand."""
        proposals = [] if self._drafter is None else self._drafter.proposals
        self._acceptance = self._request.accept(proposals, self.drafted, self._target.logits())
        return self._acceptance.accepted

    def keep(self) -> int:
        """How many tokens of the next window the draft has read past this one: they stand where this one does."""
        assert self._drafter is not None
        if self._acceptance.continues:
            self._kept = len(self._drafter.proposals) - self.drafted - 1
        return self._kept

    def end(self) -> list[int]:
        """The round is over: takes out of the models' contexts what does not stand; returns the tokens put out."""
        accepted, next_token = self._acceptance.accepted, self._acceptance.next_token
        self._target.forget(self.drafted - accepted)
        new = [next_token]
        if self._drafter is not None:
            new = [*(each.token for each in self._drafter.proposals[:accepted]), next_token]
            self._drafter.round_ended(self._position + 1 + accepted, self._kept)
        self._request.advance(new)
        return new
