"""The beginning of a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spmoe.errors import InputError
from spmoe.trace.excerpt import excerpt
from spmoe.trace.schema import PrefillLine, TokenLine, TraceInMemory
from tests.trace.conftest import DRAFT, MODEL, make_header

CELLS = ((0, 1), (3, 2))
OTHER = replace(MODEL, name="other", expert_params=99)


def token(request: int, position: int, cells: tuple[tuple[int, ...], ...] = CELLS) -> TokenLine:
    return TokenLine(request, position, cells, True)


LINES = (
    PrefillLine(0, 7, ((0, 1), (2, 3))),
    token(0, 7),
    token(0, 8),
    PrefillLine(1, 4, ((0,), (1,))),
    token(1, 4),
)
TRACE = TraceInMemory(make_header(3), LINES)


@pytest.mark.parametrize(("tokens", "lines"), [(1, 2), (2, 3), (3, 5), (None, 5)])
def test_the_first_tokens_with_the_prompts_before_them(tokens: int | None, lines: int) -> None:
    """Behind the second token comes a prompt that no token follows."""
    found = excerpt(TRACE, tokens, OTHER, DRAFT)
    assert found.lines == LINES[:lines]
    assert found.header == replace(TRACE.header, model=OTHER, tokens=3 if tokens is None else tokens)


@pytest.mark.parametrize("tokens", [0, -1, 4])
def test_only_as_many_as_there_are(tokens: int) -> None:
    with pytest.raises(InputError, match="tokens: expected 1 to 3, as many as the trace has"):
        excerpt(TRACE, tokens, OTHER, DRAFT)


@pytest.mark.parametrize("changes", [{"layers": 3}, {"experts": 5}, {"top_k": 1}])
def test_a_model_of_another_shape(changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="model tiny: expected 2 MoE layers of 4 experts, top-2, as the trace of tiny"):
        excerpt(TRACE, None, replace(MODEL, **changes), DRAFT)


def test_a_token_whose_experts_nobody_knows() -> None:
    lines = (*LINES[:2], token(0, 8, ((0, 1), ())))
    trace = TraceInMemory(make_header(2, empty_cells=1), lines)
    assert excerpt(trace, 1, MODEL, DRAFT).lines == lines[:2]
    with pytest.raises(InputError, match="does not tell all 2 experts of the token at position 8 of request 0"):
        excerpt(trace, 2, MODEL, DRAFT)
