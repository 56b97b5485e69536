"""Every driver under every recipe keeps the contract of docs/contract.md."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.events import RequestBegun, StepBegun, StepEnded
from spmoe.trace.schema import PrefillLine, TokenLine
from tests.conformance.cases import Case, cases, named_cases
from tests.conformance.checker import ContractChecker
from tests.conformance.drivers import Drive, Recording, execute, simulate, with_room
from tests.soak import times

CASES = dict(named_cases())
SAMPLES = {name: random.Random(name).sample(sorted(CASES), 3) for name in RECIPES}
"""The cases that every run of the suite tries with a recipe; a soak tries all."""
CHOOSING = [name for name, recipe in RECIPES.items() if recipe.speculation.chooses]


def pairs_to_try(policies: Iterable[str]) -> list[Any]:
    """Every policy with every case; slow are those outside its sample."""
    return [
        pytest.param(policy, name, marks=() if name in SAMPLES[policy] else pytest.mark.slow)
        for policy in policies
        for name in CASES
    ]


def check(recording: Recording) -> None:
    checker = ContractChecker(recording.config)
    for event, commands in recording.entries:
        checker.observe(event, commands)
    checker.finish()


def check_budget(recipe: Recipe, recording: Recording, case: Case) -> None:
    """Each request puts out a token per line, and drafts past its end only what was recorded there."""
    left: dict[int, deque[TokenLine]] = defaultdict(deque)
    for line in case.trace:
        if isinstance(line, TokenLine):
            left[line.request].append(line)
    request = -1
    for event, _ in recording.entries:
        if isinstance(event, RequestBegun):
            assert request == -1 or not left[request]
            request = event.request
        elif isinstance(event, StepBegun):
            ahead = list(left[request])
            stops = next((n for n, line in enumerate(ahead) if not line.agree or line is ahead[-1]))
            recorded = stops + len(ahead[stops].rejected)
            assert event.limit == min(recipe.speculation.gamma(case.gamma), max(len(ahead) - 1, recorded))
        elif isinstance(event, StepEnded):
            for _ in range(event.accepted + 1):
                left[request].popleft()
    assert not any(left.values())


@pytest.mark.parametrize(("policy", "name"), pairs_to_try(RECIPES))
def test_keeps_the_contract(driver: Drive, policy: str, name: str) -> None:
    recipe = RECIPES[policy]
    case = with_room(recipe, CASES[name])
    recording = driver(recipe, case)
    check(recording)
    check_budget(recipe, recording, case)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_keeps_the_contract_on_random_traces(driver: Drive, recipe: Recipe) -> None:
    # The engine has threads to wait for, and is compared with the simulator besides.
    @settings(max_examples=times(20, soaked=60) if driver is simulate else times(3, soaked=5), deadline=None)
    @given(case=cases())
    def keeps_the_contract(case: Case) -> None:
        case = with_room(recipe, case)
        recording = driver(recipe, case)
        check(recording)
        check_budget(recipe, recording, case)

    keeps_the_contract()


@settings(max_examples=times(40), deadline=None)
@given(recipe=st.sampled_from(list(RECIPES.values())), case=cases())
def test_a_run_can_be_repeated_from_its_events(driver: Drive, recipe: Recipe, case: Case) -> None:
    case = with_room(recipe, case)
    recording = driver(recipe, case)
    assert driver(recipe, case).entries == recording.entries
    fresh = Scheduler(recording.config, recording.future)
    for event, commands in recording.entries:
        assert fresh.handle(event) == commands


def check_same(recipe: Recipe, case: Case) -> None:
    """Both drivers tell and are told the same, on the engine's own runtime; only the simulator imitates others."""
    pytest.importorskip("torch", reason="the engine needs torch")
    case = with_room(recipe, case)
    ours, theirs = execute(recipe, case), simulate(replace(recipe, runtime=NATIVE), case)
    for number, (entry, other) in enumerate(zip(ours.entries, theirs.entries, strict=False)):
        assert entry == other, f"entry {number}"
    assert len(ours.entries) == len(theirs.entries)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_both_drivers_do_the_same(recipe: Recipe) -> None:
    for name in SAMPLES[recipe.name]:
        check_same(recipe, CASES[name])


@settings(max_examples=times(60, soaked=150), deadline=None)
@given(recipe=st.sampled_from(list(RECIPES.values())), case=cases())
def test_both_drivers_do_the_same_on_random_traces(recipe: Recipe, case: Case) -> None:
    check_same(recipe, case)


@pytest.mark.parametrize(("policy", "name"), pairs_to_try(CHOOSING))
def test_lengths_that_are_chosen(policy: str, name: str) -> None:
    recipe = RECIPES[policy]
    for bandwidth in (10**8, 10**9, 10**10):
        case = with_room(recipe, replace(CASES[name], gamma=8, chooses=True, bandwidth=bandwidth))
        recording = simulate(recipe, case)
        check(recording)
        check_budget(recipe, recording, case)
        check_same(recipe, case)


def test_tells_what_recipes_ask_for_and_nothing_else(driver: Drive) -> None:
    case = CASES["half the experts"]
    assert any(isinstance(line, PrefillLine) for line in case.trace)
    for recipe in RECIPES.values():
        fields: dict[str, int] = Counter()
        for event, _ in driver(recipe, with_room(recipe, case)).entries:
            kind = type(event).__name__
            fields[kind] += 1
            for name in ("popular", "touched", "gates"):
                fields[name] += bool(getattr(event, name, ()))
        assert bool(recipe.needs & {"popularity", "hindsight"}) == (fields["popular"] > 0)
        assert ("gates" in recipe.needs) == (fields["gates"] > 0)
        assert fields["HostComputed"] == 0 or not recipe.fetches_only(cpu=True)
        assert ("future" in recipe.needs) == (fields["touched"] > 0)
        assert ("draft" in recipe.needs) == (fields["DraftPredicted"] > 0)
        assert ("next_gate" in recipe.needs) == (fields["GatePredicted"] > 0)
