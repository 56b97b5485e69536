"""A trace as one program: prefill and rounds of one request after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from sim.machine.passes import Pass, PromptPass, StepPass
from spmoe.drive.draft_position import Unread
from spmoe.drive.step import Dispatch, Effect, Outcome, prefill, step
from spmoe.machine.cost import CostModel
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.events import RequestBegun
from spmoe.trace.windows import Request

Popularity = Callable[[int], tuple[int, ...]]
"""For a request, all keys by how much they are used: by other requests, or over the whole trace."""


class TraceProgram:
    """Yields the effects of a whole run; `current` is the pass that they belong to."""

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostModel,
        popularity: Popularity | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """`progress` is called with the number of tokens that each round puts out."""
        self._config = scheduler.config
        self._recipe = scheduler.recipe
        self._cost = cost
        self._popularity = popularity
        self._progress = progress
        self.current: Pass
        self.round: StepPass
        """The current pass, where it is a round's: prompts are not drafted."""

    def run(self, requests: Iterator[Request], dispatch: Dispatch) -> Generator[Effect, Outcome, None]:
        """The effects of all requests; ends with the last one.

        Raises InputError where the trace turns out bad while it is read.
        """
        config, cost, recipe = self._config, self._cost, self._recipe
        gamma = recipe.speculation.gamma(config.gamma)
        beyond = max(0, recipe.speculation.lead(config.gamma) - 1)
        knows_future = "future" in recipe.needs
        draft, time = Unread(), 0
        for request in requests:
            draft.request_begun()
            popular = self._popularity(request.number) if self._popularity else ()
            dispatch(RequestBegun(time, request.number, popular))
            if request.prefill is not None:
                self.current = PromptPass(cost, request.prefill, recipe.name, recipe.signals)
                touched = request.prefill.touched if knows_future else ()
                time = yield from prefill(dispatch, time, request.prefill.prompt_tokens, config.layers, touched)
            known = 0
            while lines := request.lines(gamma + 1 + beyond):
                this = StepPass(cost, lines, gamma, request.position, draft, recipe.name, recipe.signals, known)
                self.current = self.round = this
                time = yield from step(dispatch, time, this.limit, config.layers, known, this.reach if beyond else 0)
                known = this.stands
                request.advance(this.tokens)
                if self._progress:
                    self._progress(this.tokens)
