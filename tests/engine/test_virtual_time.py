"""In virtual time the engine takes the decisions that the simulator takes on the trace of that run, byte for byte."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from spmoe.machine.hardware import Hardware  # noqa: E402
from spmoe.policy.parts.runtime import NATIVE  # noqa: E402
from spmoe.policy.recipe import Recipe  # noqa: E402
from spmoe.policy.registry import RECIPES  # noqa: E402
from spmoe.scheduler.log import verify_log  # noqa: E402
from spmoe.state.keys import Shape  # noqa: E402
from tests.engine.drafted import Pair, save_pair  # noqa: E402
from tests.engine.runs import FAST, SLOW, Request, Run, run, run_knowing, simulated, simulated_natively  # noqa: E402
from tests.engine.tiny import FAMILIES  # noqa: E402

NAMES = ("mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss")
REQUESTS = (Request((1, 5, 9, 33, 7), 8), Request((4,), 2), Request((60, 3, 3, 8, 12, 40, 40), 6))
ENDLESS = {"ignore_eos": True}
KNOWING = frozenset({"popularity", "hindsight", "future"})


class Pairs:
    """Pairs by family, each saved once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of = cache(lambda family, noise=0.05: save_pair(folder / f"{noise}", family, noise=noise))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


class Setup(NamedTuple):
    """How a recipe is run."""

    recipe: Recipe
    family: str
    machine: Hardware
    slots: int
    gamma: int

    @property
    def name(self) -> str:
        speed = "slow" if self.machine is SLOW else "fast"
        return f"{self.recipe.name}-{self.family}-{speed}-{self.slots}-{self.gamma}"


def setups() -> Iterator[Setup]:
    """Each recipe on a slow and on a fast machine, with the rest drawn: from one slot (if it may) to all."""
    for recipe in RECIPES.values():
        rng = random.Random(f"{recipe.name}")
        families = rng.sample(NAMES, 2)
        for family, machine in zip(families, (SLOW, FAST), strict=True):
            shape = FAMILIES[family]
            keys = shape.layers * shape.experts
            least = recipe.placement.least(Shape(shape.layers, shape.experts, shape.top_k))
            slots = rng.choice([least, least + 1, (least + keys) // 2, keys])
            yield Setup(recipe, family, machine, min(slots, keys), rng.choice([1, 2, 3, 4, 6]))


def check(found: Run, folder: Path) -> None:
    """The simulator's log and results are those of `found`."""
    log, result = simulated(found, folder)
    assert found.log == log
    ours = dict(found.document["results"][0])
    for entry in (ours, result):
        entry.pop("speedup_vs_on_demand")  # A run knows no other to compare with.
    assert ours == result


def one_each() -> Iterator[Any]:
    """One setup of each recipe in every run, by turns on the slow and the fast machine; a soak runs both."""
    for number, setup in enumerate(setups()):
        yield pytest.param(setup, id=setup.name, marks=() if number % 4 in (0, 3) else pytest.mark.slow)


@pytest.mark.parametrize("setup", one_each())
def test_every_recipe(tmp_path: Path, pairs: Pairs, setup: Setup) -> None:
    options: dict[str, Any] = {"policy": setup.recipe.name, "slots": setup.slots, "gamma": setup.gamma}
    options["sampling"] = ENDLESS
    # What a draft reads past the window when it has gone astray stands in no trace: there, it never does.
    pair = pairs.of(setup.family, 0.0 if setup.recipe.speculation.lead(setup.gamma) else 0.05)
    if setup.recipe.needs & KNOWING:
        found = run_knowing(tmp_path, pair, REQUESTS, setup.machine, **options)
    else:
        found = run(pair, REQUESTS, setup.machine, **options)
    assert found.plan.recipe is setup.recipe and not found.plan.fallback
    if setup.recipe.runtime == NATIVE:
        check(found, tmp_path)
    else:
        assert found.log == simulated_natively(found)


@pytest.mark.parametrize("cpu_experts", [True, False])
def test_misses_between_link_and_cpu(tmp_path: Path, pairs: Pairs, cpu_experts: bool) -> None:
    # A CPU on which an expert takes about as long as on the link.
    assert SLOW.cpu is not None
    machine = replace(SLOW, cpu=replace(SLOW.cpu, bandwidth=4 * 10**7))
    options = {"policy": "spmoe.foresight.split", "slots": 6, "gamma": 3, "cpu_experts": cpu_experts}
    found = run(pairs.of("mixtral"), REQUESTS, machine, sampling=ENDLESS, **options)
    check(found, tmp_path)
    plans = [line for line in found.lines if line.get("command") == "LayerPlan"]
    fetched = sum(len(plan["late"]) + len(plan["misses"]) - len(plan["host"]) for plan in plans)
    assert fetched > 0
    assert bool(found.events("HostComputed")) is cpu_experts
    assert found.document["results"][0]["fetch_only"] is not cpu_experts
    assert found.document["config"]["cpu_experts"] is cpu_experts
    (tmp_path / "run.log").write_text(found.log)
    assert verify_log(tmp_path / "run.log").recipe == "spmoe.foresight.split"


@pytest.mark.parametrize("gamma", range(7))
def test_every_number_of_drafted_tokens(tmp_path: Path, pairs: Pairs, gamma: int) -> None:
    found = run(pairs.of("mixtral"), REQUESTS, SLOW, policy="spmoe.paper", slots=6, gamma=gamma)
    check(found, tmp_path)
    assert {line["gamma"] for line in found.lines if line.get("command") == "Speculate"} >= {gamma}


@pytest.mark.parametrize("slots", [1, 3, 5, 12])
def test_every_size_of_cache(tmp_path: Path, pairs: Pairs, slots: int) -> None:
    """From waves, where prompt and windows need more than there is room for, to everything."""
    found = run(pairs.of("mixtral"), REQUESTS, SLOW, policy="spmoe.paper", slots=slots, gamma=4)
    check(found, tmp_path)
    waves = [line["waves"] for line in found.lines if line.get("command") == "LayerPlan"]
    assert any(waves) == (slots < 4)  # Four experts are all that a layer has.


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        ("spmoe.foresight", {"gamma": 3}),
        ("spmoe.foresight", {"gamma_max": 5}),
        ("spmoe.foresight.run-ahead", {"gamma": 1}),
        ("spmoe.foresight.run-ahead", {}),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("spmoe.foresight", {"gamma": 1}),
                ("spmoe.foresight", {"gamma": 6}),
                ("spmoe.foresight", {}),
                ("spmoe.foresight.run-ahead", {"gamma": 3}),
                ("spmoe.foresight.run-ahead", {"gamma": 6}),
                ("spmoe.foresight.run-ahead", {"gamma_max": 5}),
            )
        ),
    ],
)
def test_drafts_that_go_on_past_the_window(tmp_path: Path, pairs: Pairs, policy: str, asked: dict[str, int]) -> None:
    """With lengths that are given and with lengths that are chosen; see `test_every_recipe` about the draft."""
    requests = (Request((1, 5, 9, 33, 7), 21), Request((4,), 2), Request((60, 3, 3, 8, 12, 40, 40), 12))
    events = set()
    # With the CPU there is hardly a wait that is long enough.
    for bandwidth, cpu in ((3 * 10**7, False), (10**7, True), (10**7, False), (3 * 10**6, False)):
        machine = replace(FAST, link=replace(FAST.link, bandwidth=bandwidth))
        options = {"policy": policy, "slots": 7, "cpu_experts": cpu, **asked}
        found = run(pairs.of("mixtral", 0.0), requests, machine, sampling=ENDLESS, **options)
        assert found.plan.config.chooses == ("gamma" not in asked and policy == "spmoe.foresight")
        check(found, tmp_path)
        events |= {line.get("event") or line["command"] for line in found.lines}
    assert events >= {"DraftAhead", "LeadStands"}


def test_at_most_no_token_is_plain_decoding(tmp_path: Path, pairs: Pairs) -> None:
    """A longest draft of 0 leaves nothing to choose."""
    options: dict[str, Any] = {"policy": "spmoe.foresight", "slots": 6, "cpu_experts": False, "sampling": ENDLESS}
    given, chosen = (
        run(pairs.of("mixtral"), REQUESTS, SLOW, **options, **{name: 0}) for name in ("gamma", "gamma_max")
    )
    check(chosen, tmp_path)
    assert chosen.plan.config.chooses and not given.plan.config.chooses
    assert chosen.tokens == given.tokens
    assert chosen.lines == given.lines
    assert chosen.document["results"][0]["drafted_per_step"] == 0


def test_prefetches_come_early_and_late(pairs: Pairs) -> None:
    """The two machines are such that nothing of this is left untried."""
    seen = {}
    for name, machine in (("slow", SLOW), ("fast", FAST)):
        found = run(pairs.of("mixtral"), REQUESTS, machine, policy="next-gate", slots=8, gamma=3, sampling=ENDLESS)
        plans = [line for line in found.lines if line.get("command") == "LayerPlan"]
        seen[name] = [sum(len(plan[kind]) for plan in plans) for kind in ("hits", "late", "misses")]
    assert min(seen["slow"]) > 10
    assert min(seen["fast"][0], seen["fast"][2]) > 10


def blocks(found: Run, number: int = 0) -> list[tuple[int, ...]]:
    """What each round of a request put out, the token behind the prompt first."""
    accepted: list[int] = []
    request = -1
    for line in found.lines:
        if line.get("event") == "RequestBegun":
            request = line["request"]
        elif line.get("event") == "StepEnded" and request == number:
            accepted.append(line["accepted"])
    tokens = found.tokens[number]
    cut, at = [tokens[:1]], 1
    for count in accepted:
        cut.append(tokens[at : at + count + 1])
        at += count + 1
    assert at == len(tokens)
    return cut


def ending_with(folder: Path, pair: Pair, token: int) -> Pair:
    """A copy of the pair whose sequences end with `token`."""
    target = folder / f"{pair.target.name}-{token}"
    shutil.copytree(pair.target, target)
    file = target / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [token]}))
    return Pair(target, pair.draft)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("policy", ["spmoe.per-layer", "moe-infinity.paper.spec"])
def test_a_sequence_that_ends_inside_a_block(tmp_path: Path, pairs: Pairs, noise: float, policy: str) -> None:
    """At every place of a block where it can: after nothing, after agreement, and with agreement behind it."""
    pair, gamma = pairs.of("mixtral", noise), 4
    asked = (Request((1, 5, 9, 33, 7), 24), Request((60, 3), 6))
    options: dict[str, Any] = {"policy": policy, "slots": 6, "gamma": gamma}
    endless = run(ending_with(tmp_path, pair, 2), asked, SLOW, **options)
    assert len(endless.tokens[0]) == 24
    ends: dict[int, int] = {}  # place in the block -> a token that comes there for the first time
    seen = set()
    for block in blocks(endless):
        for place, token in enumerate(block):
            if token not in seen and len(block) > 1:
                ends.setdefault(place, token)
            seen.add(token)
    assert len(ends) >= 2
    for place, token in ends.items():
        found = run(ending_with(tmp_path, pair, token), asked, SLOW, **options)
        assert found.tokens[0] == endless.tokens[0][: endless.tokens[0].index(token) + 1]
        last = blocks(found)[-1]
        assert len(last) == place + 1
        check(found, tmp_path)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 6])
def test_budgets_that_end_a_block(tmp_path: Path, pairs: Pairs, budget: int) -> None:
    """With a draft that is always right, where a round of four drafted tokens puts out five."""
    asked = (Request((1, 5, 9), budget), Request((8, 8), 7))
    found = run(pairs.of("mixtral", 0.0), asked, SLOW, policy="spmoe.per-layer", slots=6, gamma=4)
    assert [len(tokens) for tokens in found.tokens] == [budget, 7]
    check(found, tmp_path)
    assert found.document["config"]["engine"]["acceptance"] == 1.0


def test_a_draft_that_is_always_right_is_always_accepted(tmp_path: Path, pairs: Pairs) -> None:
    for family in NAMES:
        found = run(pairs.of(family, 0.0), REQUESTS, SLOW, policy="spmoe.paper", cache=0.5, gamma=5)
        check(found, tmp_path)


def test_without_a_draft(tmp_path: Path, pairs: Pairs) -> None:
    """Nothing is drafted, and what needs a draft's forecasts falls back."""
    for policy, instead in (("on-demand.lru", "on-demand.lru"), ("spmoe.per-layer", "spmoe.per-layer.next-gate")):
        found = run(pairs.of("qwen2-moe"), REQUESTS, SLOW, draft=False, policy=policy, slots=6)
        assert found.plan.recipe.name == instead
        assert found.plan.setting.gamma == 0 and not found.events("TokenDrafted")
        check(found, tmp_path)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A draft of two layers for a target of three."""
    folder = tmp_path_factory.mktemp("uneven")
    target = save_pair(folder / "three", "mixtral").target
    return Pair(target, save_pair(folder / "two", "mixtral", num_hidden_layers=2).draft)


def test_a_layer_map(tmp_path: Path, uneven: Pair) -> None:
    for layer_map in ((0, 1, 1), (1, 0, 0), (0, 0, 0)):
        found = run(uneven, REQUESTS, SLOW, policy="spmoe.paper", slots=7, gamma=3, layer_map=layer_map, cutoff=3)
        assert found.plan.recipe.name == "spmoe.paper"
        assert found.events("DraftPredicted")
        check(found, tmp_path)


def test_fallbacks(tmp_path: Path, uneven: Pair) -> None:
    for asked, instead in (("spmoe.paper", "spmoe.next-gate"), ("spmoe.per-layer", "spmoe.per-layer.next-gate")):
        found = run(uneven, REQUESTS, SLOW, policy=asked, slots=7, gamma=3)
        assert found.plan.recipe.name == instead and found.plan.fallback
        assert not found.events("DraftPredicted") and found.events("TokenDrafted")
        check(found, tmp_path)


@pytest.mark.parametrize("cutoff", [0, 1, 2, 3])
def test_a_cutoff_that_was_given(tmp_path: Path, pairs: Pairs, cutoff: int) -> None:
    found = run(pairs.of("mixtral"), REQUESTS, SLOW, policy="spmoe.paper", slots=7, gamma=3, cutoff=cutoff)
    assert found.plan.config.cutoff == cutoff
    check(found, tmp_path)


def test_drawn_tokens(tmp_path: Path, pairs: Pairs) -> None:
    """Where tokens are drawn, agreement is luck; the trace says which drafted ones stood."""
    drawn = {"temperature": 0.8, "seed": 5}
    found = run(pairs.of("mixtral"), REQUESTS, SLOW, policy="spmoe.paper", slots=7, gamma=3, sampling=drawn)
    assert {line["accepted"] for line in found.events("StepEnded")} >= {0, 1}
    check(found, tmp_path)


def test_a_sequence_that_ends_where_nothing_is_drafted(tmp_path: Path, pairs: Pairs) -> None:
    asked = (Request((1, 5, 9, 33, 7), 24),)
    options: dict[str, Any] = {"policy": "moe-infinity.paper", "slots": 6, "gamma": 4}
    endless = run(pairs.of("mixtral"), asked, SLOW, sampling=ENDLESS, **options)
    token = endless.tokens[0][5]
    check(run(ending_with(tmp_path, pairs.of("mixtral"), token), asked, SLOW, **options), tmp_path)
