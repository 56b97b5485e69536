"""Drafts a request's tokens: each is read to propose the next, in the window and past it."""

from __future__ import annotations

from engine.decoding.draft_model import DraftModel, Poll, Review
from engine.decoding.recorder import Recorder
from engine.decoding.request import Request
from engine.decoding.sampler import Proposal
from engine.decoding.to_host import fixed_point
from engine.decoding.warper import History
from spmoe.drive.draft_position import Unread
from spmoe.state.events import Forecast


class Drafter:
    """Has a draft propose what follows a request, and keeps what stands for the next round."""

    def __init__(self, model: DraftModel, recorder: Recorder | None) -> None:
        self.model = model
        self._recorder = recorder
        self._request: Request
        self._unread = Unread()
        self.reads = 0
        """How many tokens the draft reads for the one that it proposes, as the cost model counts them: of a token that
        was begun and dropped, all is read."""
        self.proposals: list[Proposal] = []
        """What the draft proposed behind the request's tokens, in the window and past it."""

    def begin(self, request: Request) -> None:
        """A new request: nothing is in the context, unless it keeps what it has in common with the one before."""
        self._request = request
        self._unread.request_begun()
        self.model.begin(request.prompt if request.keeps_context else ())
        self.proposals = []

    @property
    def review(self) -> Review:
        """As `DraftModel.review`."""
        return self.model.review

    def most(self, limit: int) -> int:
        """How many tokens it can propose in the next round, at most `limit`: always so many."""
        return limit

    def cancel(self) -> None:
        """Drops the pass under way, if any."""
        self.model.cancel()

    def begin_round(self, position: int) -> None:
        """A round begins whose pending token is at `position`; what is proposed already stands behind it."""
        self._unread.round_ended(position + len(self.proposals))
        self._unread.round_begun(position, len(self.proposals))

    @property
    def context(self) -> list[int]:
        """All tokens that a proposal is to follow."""
        return [*self._request.tokens, *(each.token for each in self.proposals)]

    def draft_layers(self, token: int, first: int, end: int, poll: Poll) -> tuple[Forecast, ...]:
        """Goes on until there are forecasts for layers `first` to `end` (exclusive); `poll` is called at every layer of
        the draft."""
        self._begin_token()
        return self._request.forecasts(token, first, end, self.model.forecasts(first, end, poll))

    def draft_token(self, token: int, poll: Poll) -> int | None:
        """Goes on until a token is proposed; returns its probability (/65536), if the scheduler is to know it."""
        self._begin_token()
        proposal = self.propose(poll)
        self.proposals.append(proposal)
        if self._recorder is not None:
            self._recorder.drafted(fixed_point(proposal.probability), self.model.all_forecasts())
        return self._request.confidence(token, proposal)

    def propose(self, poll: Poll) -> Proposal:
        """What follows `context`."""
        request = self._request
        return request.sampler.propose(self.model.logits(poll), History(self.context, len(request.prompt)))

    def round_ended(self, length: int, kept: int) -> None:
        """Of what the draft has read the request's first `length` tokens stand, and behind them the last `kept` of the
        proposals; a token under way is dropped."""
        self.model.cancel()
        self.model.forget(length + kept)
        self.proposals = self.proposals[len(self.proposals) - kept :]

    def _begin_token(self) -> None:
        if not self.model.running:
            self.reads = self._unread.draft()
            self.model.start(self.context)
