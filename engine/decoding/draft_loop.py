"""The draft's tokens of a round: each is read to propose the next, in the window and past it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.decoding.draft_model import Draft
from engine.decoding.sampler import Proposal, Sampler
from engine.execution.coroutine import Aside, Piece
from engine.execution.driver import Driver
from spmoe.drive.step import DraftLayers, DraftToken, Keep, Shorten
from spmoe.policy.parts.speculation import Speculation

Told = Callable[[int, Proposal], int | None]
"""What the scheduler hears of a proposal, that the draft makes when it has read the token of that number: a probability
(/65536), or None."""


class Chain:
    """Has the draft propose what a driver asks for, and keeps what stands for the next round."""

    def __init__(self, draft: Draft, driver: Driver, aside: Aside, speculation: Speculation, configured: int) -> None:
        """`aside` is where the draft goes on past the window; `configured` is the scheduler's gamma."""
        self._draft = draft
        self._driver = driver
        self._aside = aside
        self.gamma = speculation.gamma(configured)
        """The most tokens to draft in a round."""
        self._beyond = max(0, speculation.lead(configured) - 1)
        self._sampler: Sampler
        self._told: Told
        self._tokens: Sequence[int] = ()
        """Of the request, the pending one last."""
        self.proposals: list[Proposal] = []
        """What the draft proposed behind them; past the window, too."""

    def begin(self, sampler: Sampler, told: Told) -> None:
        """A new request: nothing is in the context."""
        self._sampler, self._told = sampler, told
        self._draft.begin()
        self.proposals = []

    @property
    def most(self) -> int:
        """How many tokens of a request a round may look at, from the pending one on."""
        return self.gamma + 1 + self._beyond

    def reach(self, left: int) -> int:
        """How many tokens the draft may read in a round that begins with `left` tokens yet to come."""
        return min(left, self.most) if self._beyond else 0

    def draft(self, tokens: Sequence[int]) -> int:
        """Goes on behind `tokens`, all of the request so far, until the driver asks for the target; returns how many of
        the proposals the window holds."""
        self._tokens = tokens
        while type(self._driver.asked) in (DraftLayers, DraftToken):
            self._propose(self._driver)
        window = len(self.proposals)
        if type(asked := self._driver.asked) is Shorten:
            window = asked.drafted
            self._driver.answer(None)
        return window

    def go_on(self, piece: Piece) -> Any:
        """What comes of `piece`, past the window, while the target's pass is under way."""
        return self._aside.ask(piece, self._go_on)

    def continuation(self, window: int) -> int | None:
        """The token that the draft would have put behind a window of so many drafted tokens; None where it has not said
        one."""
        return self.proposals[window].token if window < len(self.proposals) else None

    def end(self, window: int, length: int, stands: bool) -> int:
        """The round is over, whose window held so many drafted tokens.

        Of what the draft has read the request's first `length` tokens stand; with `stands`, so does what it read past
        the window, and is kept for the next round: returns how many tokens that are.  What it was reading is left.
        """
        kept = 0
        if type(self._driver.asked) is Keep:
            kept = len(self.proposals) - window - 1 if stands else 0
            self._driver.answer(kept)
        self._aside.leave()
        self._draft.forget(length + kept)
        self.proposals = self.proposals[len(self.proposals) - kept :]
        return kept

    def release(self) -> None:
        """Lets go of everything, since the driver knows this object: it cannot be used any more."""
        self.__dict__.clear()

    def _go_on(self, aside: Aside) -> None:
        while True:
            self._propose(aside)

    def _propose(self, asker: Driver | Aside) -> None:
        number = asker.asked.token  # type: ignore[union-attr]
        proposal = self._draft.propose([*self._tokens, *(each.token for each in self.proposals)], self._sampler, asker)
        self.proposals.append(proposal)
        asker.answer(self._told(number, proposal))
