"""Where the memory goes."""

import pytest

from spmoe.errors import InputError
from spmoe.machine.budget import memory_budget
from spmoe.machine.geometry import draft_model, geometry

GIB = 1024**3
MIXTRAL = geometry("mixtral-8x7b")
MISTRAL = draft_model("mistral-7b")


def test_mixtral_on_24_gib() -> None:
    budget = memory_budget(MIXTRAL, 4.25, MISTRAL, longest_request=1000, vram=24 * GIB)
    assert budget.dense == 852_994_176  # 1,605,636,096 weights of 4.25 bits
    assert budget.draft == 3_847_170_176
    assert budget.target_kv == budget.draft_kv == 131_072_000
    assert budget.workspace == GIB
    assert budget.left == 24 * GIB - budget.fixed == 24 * GIB - (852_994_176 + 3_847_170_176 + 262_144_000 + GIB)
    assert budget.slots == budget.left // 93_585_408 == 210
    assert budget.needs(210) <= 24 * GIB < budget.needs(211)
    assert budget.explain() == (
        "24.0 GiB - (dense weights 813.5 MiB + draft 3.6 GiB + KV cache 125.0 MiB + draft KV cache 125.0 MiB "
        "+ workspace 1.0 GiB) = 18.4 GiB for experts: 210 of 256 slots of 89.2 MiB"
    )


def test_never_more_slots_than_experts() -> None:
    assert memory_budget(MIXTRAL, 4.25, None, longest_request=1000, vram=139 * GIB).slots == 256


def test_a_run_without_draft_pays_for_none() -> None:
    budget = memory_budget(MIXTRAL, 16, None, longest_request=1, vram=24 * GIB)
    assert (budget.draft, budget.draft_kv) == (0, 0)
    assert "draft" not in budget.explain()


def test_hypothetical_runs_say_so() -> None:
    budget = memory_budget(MIXTRAL, 16, MISTRAL, longest_request=1000, vram=24 * GIB)
    assert budget.feasible(10, 24 * GIB)
    assert budget.warning(10, 24 * GIB) is None
    assert not budget.feasible(256, 24 * GIB)
    assert budget.warning(256, 24 * GIB) == "hypothetical: needs 101.7 GiB of 24"


@pytest.mark.parametrize("vram", [17 * GIB, 10 * GIB, 17 * GIB + 900 * 1024**2])
def test_too_little_for_one_expert_says_what_takes_how_much(vram: int) -> None:
    budget = memory_budget(MIXTRAL, 16, MISTRAL, longest_request=1000, vram=vram)
    with pytest.raises(
        InputError, match=r"^vram 1\d\.\d GiB: expected room .* 336\.0 MiB .*draft 13\.5 GiB.*: 18\.1 GiB$"
    ):
        _ = budget.slots
    assert "for experts: 0 of 256 slots" in budget.explain()
