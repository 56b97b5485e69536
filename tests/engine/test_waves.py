"""Experts that come in waves, late, in any order or from the CPU: none of it shows in what comes out."""
# ruff: noqa: E402

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from engine.engine import Engine
from spmoe.policy.registry import RECIPES
from spmoe.trace.schema import PrefillLine, TokenLine
from tests.engine.pairs import LOSSLESS, Case, Pairs, draw_cases, listening, prompt_of
from tests.engine.tiny import FAMILIES, tokens
from tests.soak import times

pytestmark = pytest.mark.usefixtures("no_network")

FEW = 3
ON_CPU = ("llamacpp.cpu-moe", "llamacpp.n-cpu-moe", "fiddler", "fiddler.spec", "moe-spac", "spmoe.foresight.split")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("slots", range(1, FEW + 1))
def test_a_layer_may_need_more_experts_than_there_are_slots(pairs: Pairs, slots: int) -> None:
    able = [
        recipe
        for recipe in LOSSLESS
        if not recipe.needs & {"popularity", "hindsight", "future"}
        and all(recipe.placement.least(FAMILIES[family]) <= slots for family in FAMILIES)
    ]
    assert len(able) > 10
    crowded = []
    for case in draw_cases(able, times(1), seed=slots, drafts=("noisy", "random"))[:: 1 if slots == FEW else 2]:
        target, prompt = pairs.target(case.family, case.seed), tokens(40, case.seed).tolist()[0]
        with Engine.from_pretrained(
            target,
            pairs.draft(case.draft, case.family, case.seed),
            policy=case.recipe.name,
            slots=slots,
            gamma=case.gamma,
            dtype="float64",
            record=True,
        ) as engine:
            found = list(engine.generate(prompt, 12, ignore_eos=True).tokens)
            assert engine.recorder is not None
            lines = list(engine.recorder)
        assert found == pairs.plain(target, torch.float64, prompt, 12, None).tokens
        read = next(line for line in lines if isinstance(line, PrefillLine))
        crowded.append(max(map(len, read.touched)) > slots)
        if slots < FAMILIES[case.family].top_k:
            assert all(len(cell) > slots for line in lines if isinstance(line, TokenLine) for cell in line.routed)
    # Prompts need more than there is room for, and with few slots even single tokens do.  (Some routers always choose
    # the same experts.)
    assert sum(crowded) > 0.8 * len(crowded)


def logits_of(pairs: Pairs, case: Case, **options: Any) -> tuple[list[Any], int]:
    """The logits of every pass of the target, and how many experts the CPU computed."""
    with pairs.engine(case, torch.float32, **options) as engine, listening() as heard:
        engine.generate(prompt_of(case), case.new, ignore_eos=True)
        return [each.logits for each in heard], engine.metrics().host_computed


MIXED = ("on-demand.lru", "next-gate", "spmoe.paper", "least-stale.spec", *ON_CPU)


@pytest.mark.parametrize(("policy", "family"), [*zip(MIXED, FAMILIES, strict=False)])
def test_bits_do_not_depend_on_when_experts_arrive(pairs: Pairs, policy: str, family: str) -> None:
    """On a slow link and on a fast one, twice on each, and in virtual time."""
    case = Case(RECIPES[policy], family, 3, "noisy", 3, 0.4, 11, 12, False)
    first, _ = logits_of(pairs, case)
    for options in ({"link_gbps": 0.02}, {"link_gbps": 0.02}, {"link_gbps": 1000.0}, {"virtual_time": "rtx-3090"}):
        again, _ = logits_of(pairs, case, **options)
        assert len(again) == len(first)
        assert all(torch.equal(*both) for both in zip(again, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("policy", "family"),
    [*zip(ON_CPU, ("gpt-oss", "mixtral", "olmoe", "glm4-moe", "granite-moe", "mixtral"), strict=True)],
)
def test_experts_on_the_cpu_are_exact(pairs: Pairs, policy: str, family: str, dtype: torch.dtype) -> None:
    case = Case(RECIPES[policy], family, 0, "noisy", 4, 0.3, 11, 24, False)
    with pairs.engine(case, dtype, link_gbps=0.001) as engine:
        for number, length in enumerate((11, 40)):
            prompt = tokens(length, number).tolist()[0]
            expected = pairs.plain(pairs.target(family, 0), dtype, prompt, 24, None).tokens
            if number == 0 or not case.learns:  # a trace knows one request
                assert list(engine.generate(prompt, 24, ignore_eos=True).tokens) == expected
        assert engine.metrics().host_computed > 0
