"""The window of a step: which tokens are drafted, and when that is enough."""

from __future__ import annotations

from spmoe.policy.foresight.draft_length import Agreement, DraftLength
from spmoe.policy.parts.fixed_point import ONE
from spmoe.policy.recipe import Recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.state.commands import Verify
from spmoe.state.events import DraftPredicted, TokenDrafted


class DraftWindow:
    """The drafted tokens of the step under way, and how likely they are accepted."""

    def __init__(self, config: SchedulerConfig, recipe: Recipe) -> None:
        self.gamma = 0
        """Drafted tokens that the window holds, or at most will hold."""
        self.drafted = 0
        """Tokens drafted so far."""
        self.closed = False
        """Whether it is settled which tokens the window holds."""
        self._most = recipe.speculation.gamma(config.gamma)
        self._agreement = Agreement()
        self._length = (
            DraftLength(config.shape, config.slots, self._most, config.pace, self._agreement)
            if config.chooses
            else None
        )
        self._confidences: list[int | None] = []
        """The draft's probability (/65536) of each token that it has drafted, from the window's first one on."""
        self._accepted = ONE
        """The probability (/`ONE`) that all drafted tokens are accepted that the window holds so far."""
        self._began = 0
        """When the step did."""
        self._predicted = self._to_predict = 0
        """Leading layers that the draft has reported for the token under way, and those it was asked for."""

    @property
    def known(self) -> int:
        """Tokens that are drafted already when a step begins: past the window before."""
        return len(self._confidences)

    @property
    def excess(self) -> int:
        """Tokens drafted past the window when it closes."""
        return len(self._confidences) - self.gamma

    def expected(self, limit: int) -> int:
        """How many tokens the window of a step with that `limit` will about hold."""
        most = min(self._most, limit)
        return most if self._length is None else min(most, self.gamma)

    def begin(self, time: int, limit: int, layers: int) -> None:
        """A step begins; the draft is asked for forecasts of so many leading `layers`."""
        self._began = time
        self._predicted, self._to_predict = 0, layers
        most = min(self._most, limit)
        if self._length is not None:
            most = self._enough(self._length, most)
        self.gamma, self.drafted = most, min(self.known, most)
        self.closed = False
        if self.known >= most:
            self._close(time)

    def _enough(self, length: DraftLength, most: int) -> int:
        """How many tokens to draft at most: `most`, unless what is drafted already suffices."""
        length.round_begun(most)
        self._accepted = ONE
        for drafted, confidence in enumerate(self._confidences[:most]):
            accepted = self._accepted * self._agreement.chance(confidence) // ONE
            if not length.takes(drafted, accepted):
                return drafted
            self._accepted = accepted
        known = min(self.known, most)
        return most if length.goes_on(known, self._accepted) else known

    def expects(self, event: DraftPredicted | TokenDrafted) -> bool:
        """Whether the draft has to go through the event's layers, or to its end, next."""
        if event.token != self.drafted or self.drafted >= self.gamma:
            return False
        if isinstance(event, TokenDrafted):
            return self._predicted == self._to_predict
        return event.layer == self._predicted < self._to_predict

    def draft_predicted(self, layers: int) -> None:
        """The draft has reported so many layers more."""
        self._predicted += layers

    def record_confidence(self, probability: int | None) -> int:
        """The draft proposed a token with that probability (/65536); returns the chance (/`ONE`) that it is accepted
        if those before it are."""
        chance = self._agreement.chance(probability)
        self._agreement.drawn(probability)
        self._confidences.append(probability)
        return chance

    def token_drafted(self, time: int, chance: int) -> Verify | None:
        """Another token is drafted, with that chance; `Verify` where the window closes earlier than asked for."""
        self.drafted += 1
        self._predicted = 0
        if self._length is None:
            if self.drafted == self.gamma:
                self._close(time)
            return None
        drafted, accepted = self.drafted, self._accepted * chance // ONE
        window = drafted if self._length.takes(drafted - 1, accepted) else drafted - 1
        if window == drafted:
            self._accepted = accepted
            if self._length.goes_on(drafted, accepted):
                return None
        enough = window < self.gamma
        self.gamma = self.drafted = window
        self._close(time)
        return Verify(window) if enough else None

    def _close(self, time: int) -> None:
        self.closed = True
        if self._length is not None:
            self._length.drafted(time - self._began, self.gamma)

    def stalled(self, ns: int) -> None:
        """The verifier has waited so long in a layer."""
        if self._length is not None:
            self._length.stalled(ns)

    def end(self, time: int, accepted: int, known: int) -> None:
        """The window is verified: its first `accepted` drafted tokens are, and the draft has read the first `known`
        tokens of the next one."""
        for confidence, stood in zip(self._confidences, [True] * accepted + [False], strict=False):
            if accepted < self.gamma or stood:
                self._agreement.learn(confidence, stood)
        if self._length is not None:
            self._length.round_ended(time - self._began, accepted)
        self._confidences = self._confidences[self.gamma + 1 : self.gamma + 1 + known]
