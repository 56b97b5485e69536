"""`python -m sim policies` says what the registry says, in any terminal, and refuses what it does not know."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest

from sim.__main__ import main
from sim.cli.console import console
from sim.cli.policies import NEEDS, details, parts, standing
from sim.cli.policy_table import show_policies
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES, recipe, select

PARTS = ["placement", "predictor", "horizon", "admission", "eviction", "I/O plan", "miss", "speculation"]


def shown(policies: list[Recipe], long: bool, width: int) -> list[str]:
    out = console(StringIO())
    out.width = width
    show_policies(policies, long, out)
    assert isinstance(out.file, StringIO)
    return out.file.getvalue().splitlines()


def unspaced(text: str) -> str:
    """Without what wrapping adds: a word that is too long for a line is folded."""
    return "".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_list_fits_the_terminal_and_holds_every_name_and_summary(width: int) -> None:
    lines = shown(select("all"), False, width)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[:-1] if line[0] != " "] == list(RECIPES)
    column = max(map(len, RECIPES)) + 2
    text = unspaced(" ".join(line[column:] for line in lines[:-1]))
    assert text == unspaced("".join(one.summary for one in RECIPES.values()))


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("name", RECIPES)
def test_a_policy_in_full_fits_the_terminal_and_nothing_is_left_out(name: str, width: int) -> None:
    lines = shown([recipe(name)], True, width)
    assert lines[0] == name and max(map(len, lines)) <= width
    text = unspaced("".join(lines))
    for label, said in details(recipe(name)):
        assert unspaced(label + said) in text


def test_the_long_list_holds_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--long"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line and line[0] != " "] == list(RECIPES)


def test_details_name_the_parts_and_how_the_runtime_differs() -> None:
    said = dict(details(recipe("fiddler")))
    assert [name for name in said if name in PARTS] == PARTS
    assert said["miss"] == "CheaperOf" and said["I/O plan"] == "OneByOne(depth=1)"
    assert said["speculation"] == "NoSpeculation" and said["source"] == recipe("fiddler").source
    assert said["runtime"] == "copies and compute take turns; the CPU computes after the GPU; 3 copies per expert"
    assert said["needs"] == "the CPU's speed, how often other requests use each expert"
    assert dict(details(recipe("on-demand.lru")))["runtime"] == "native"


def bare(one: Recipe) -> Recipe:
    """Its parts and nothing else."""
    return replace(one, name="", summary="", source="", differs="", runtime=NATIVE, fallback="")


def test_policies_that_differ_in_a_part_are_described_differently() -> None:
    for one in RECIPES.values():
        for other in RECIPES.values():
            assert (parts(one) == parts(other)) == (bare(one) == bare(other))


def test_everything_that_a_policy_may_need_has_words() -> None:
    assert {name for one in RECIPES.values() for name in one.needs} <= NEEDS.keys()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("on-demand.lru", "lossless, fetch-only"),
        ("moe-spac", "lossless; the CPU computes too, so it may get below the bound"),
        ("adapmoe.gated", "lossy (refused without --lossy); fewer experts compute, so it may get below the bound"),
    ],
)
def test_how_the_results_stand(name: str, said: str) -> None:
    assert standing(recipe(name)) == said


def test_patterns_choose_in_the_order_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "clairvoyant", "spmoe.p*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line and line[0] != " "] == [
        "clairvoyant",
        "spmoe.paper",
        "spmoe.popular",
        "spmoe.per-layer",
        "spmoe.per-layer.next-gate",
        "spmoe.per-layer.popular",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["on-demand.mru"], "unknown policy 'on-demand.mru'; there are on-demand.lru"),
        (["nobody.*"], "no policy is called like 'nobody.*'"),
        ([""], "unknown policy ''"),
        (["--short"], "--short"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policies", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert said in captured.err
