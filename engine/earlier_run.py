"""What an earlier run's trace tells a policy: which experts are popular, or all that will be needed."""

from __future__ import annotations

import os

from spmoe.errors import InputError
from spmoe.policy.parts.future import Future
from spmoe.policy.recipe import Recipe
from spmoe.state.keys import Shape
from spmoe.trace.popularity import Uses, count_uses, most_needed
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, Trace
from spmoe.trace.windows import requests

_ASKED = {
    "popularity": "learns from other requests",
    "hindsight": "knows what this very run will need",
    "future": "knows what this very run will need",
}


class EarlierRun:
    """Answers what a recipe asks of an earlier run, request by request; nothing for a recipe that asks nothing."""

    def __init__(
        self, recipe: Recipe, shape: Shape, gamma: int, earlier: str | os.PathLike[str] | Trace | None
    ) -> None:
        """`earlier` is the trace that the earlier run recorded, or its file.

        Raises InputError where the recipe asks and there is none, or it is of another model.
        """
        asked = sorted(recipe.needs & _ASKED.keys())
        self.future: Future | None = None
        self._uses: Uses | None = None
        self._ranking: tuple[int, ...] = ()
        self._touched: dict[int, tuple[tuple[int, ...], ...]] = {}
        if not asked:
            return
        if earlier is None:
            raise InputError(
                f"policy {recipe.name}: {_ASKED[asked[0]]}; record an earlier run (--record FILE) and give it with "
                "--earlier FILE"
            )
        trace: Trace = TraceFile(earlier, ()) if isinstance(earlier, str | os.PathLike) else earlier
        model = trace.header.model
        if (model.layers, model.experts) != (shape.layers, shape.experts):
            raise InputError(
                f"{earlier}: expected a trace of a model with {shape.layers} x {shape.experts} experts, got "
                f"{model.layers} x {model.experts}"
            )
        drafted = recipe.speculation.gamma(gamma)
        if "popularity" in asked:
            self._uses = count_uses(trace)
        if "hindsight" in asked:
            self._ranking = most_needed(requests(trace), drafted, shape.layers, shape.experts)
        if "future" in asked:
            self.future = Future(lambda: requests(trace), drafted)
            self._touched = {line.request: line.touched for line in trace if isinstance(line, PrefillLine)}

    def popular(self, request: int) -> tuple[int, ...]:
        """All expert keys, most used first, counting other requests than this one; empty where nobody asks."""
        return self._ranking if self._uses is None else self._uses.popular(request)

    def touched(self, request: int) -> tuple[tuple[int, ...], ...]:
        """The experts that the request's prompt will touch, per layer; empty where nobody asks."""
        return self._touched.get(request, ())
