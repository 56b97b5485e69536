"""The trace that profiles are made with."""

from __future__ import annotations

import pytest

from engine.profiling.synthetic_trace import exercise
from spmoe.machine.geometry import geometry, geometry_names
from spmoe.trace.schema import DraftShape, ModelShape
from spmoe.trace.windows import fixed_windows, requests

DRAFT = DraftShape("draft", 1, 1, 0)


@pytest.mark.parametrize("name", geometry_names())
@pytest.mark.parametrize("tokens", [2, 4, 16])
def test_every_request_has_several_rounds(name: str, tokens: int) -> None:
    """What a round took is known when the next one begins."""
    known = geometry(name)
    shape = ModelShape(name, known.layers, known.experts, known.top_k, known.expert_params, known.dense_params, 0)
    trace = exercise(shape, DRAFT, 2, tokens)
    assert [len(list(fixed_windows(each, 4))) > 1 for each in requests(trace)] == [True, True]
