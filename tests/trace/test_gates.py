"""Gate probabilities: all of them where a trace has them, then the weights of those chosen, then equal shares."""

from __future__ import annotations

from spmoe.policy.parts.gating import SensitivityGate, thinned
from spmoe.trace.gates import even_gate, gate_of
from spmoe.trace.schema import ONE, RejectedLine, TokenLine

ROUTED = ((2, 0), (1,), ())


def test_all_probabilities_by_rank_ties_by_id() -> None:
    probs = ((20, 10, 40, 20), (), ())
    line = TokenLine(0, 0, ROUTED, True, weights=((50, 30), (80,), ()), gate_probs=probs)
    assert gate_of(line, 0) == ((2, 40), (0, 20), (3, 20), (1, 10))
    assert gate_of(line, 1) == ((1, 80),)  # This layer has weights only.


def test_weights_where_there_are_no_probabilities() -> None:
    line = TokenLine(0, 0, ROUTED, True, weights=((50, 30), (), ()))
    assert gate_of(line, 0) == ((2, 50), (0, 30))
    assert gate_of(line, 1) == ((1, ONE),)


def test_experts_count_alike_where_nothing_is_known() -> None:
    for line in (TokenLine(0, 0, ROUTED, True), RejectedLine(ROUTED)):
        assert [gate_of(line, layer) for layer in range(3)] == [((2, ONE // 2), (0, ONE // 2)), ((1, ONE),), ()]
    assert even_gate((4, 1, 5)) == ((4, ONE // 3), (1, ONE // 3), (5, ONE // 3))
    assert even_gate(()) == ()


def test_a_token_is_thinned_by_its_weights() -> None:
    gate = SensitivityGate(first=ONE // 4, last=ONE // 4)
    line = TokenLine(0, 0, ((2, 0), (1, 3), (1,), ()), True, weights=((76, 24), (75, 25), (100,), ()))
    assert thinned(line, gate) == line._replace(routed=((2,), (1, 3), (1,), ()))
    alike = RejectedLine(((2, 0),))
    assert thinned(alike, gate) == alike
