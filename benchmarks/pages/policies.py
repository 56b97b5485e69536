"""The table and the sections of docs/policies.md, from the registry."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.files import ROOT
from benchmarks.pages.markers import Block
from sim.cli.policies import needs, parts, runtime, standing
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES

PAGE = ROOT / "docs" / "policies.md"
DEFAULTS = parts(Recipe(name="", summary="", source=""))


def blocks() -> Iterator[Block]:
    """One, of all policies."""
    yield Block(PAGE, "policies", [generated()])


def generated() -> str:
    """The table of all policies, then one section for each."""
    recipes = RECIPES.values()
    table = [f"| [`{one.name}`](#{_anchor(one)}) | {one.summary} | {one.source} |" for one in recipes]
    sections = ["\n".join(_section(one)) for one in recipes]
    return "\n\n".join(
        (
            "\n".join(("| policy | what it does | source |", "|---|---|---|", *table)),
            "## One by one",
            f"A part that is not named is the default: {_listed(DEFAULTS)}. A runtime that is not named is native.",
            *sections,
        )
    )


def _section(one: Recipe) -> Iterator[str]:
    yield f"### `{one.name}`"
    yield ""
    own = {name: part for name, part in parts(one).items() if part != DEFAULTS.get(name)}
    yield f"- Parts: {_listed(own) or 'all are defaults'}."
    if one.differs:
        yield f"- Differs: {one.differs}."
    if one.runtime.explain():
        yield f"- Runtime: {runtime(one)}."
    if one.needs:
        yield f"- Needs: {needs(one)}."
    if one.fallback:
        yield f"- Fallback: `{one.fallback}`."
    if not (one.lossless and one.fetches_only(cpu=True)):
        yield f"- Results: {standing(one)}."


def _listed(named: dict[str, str]) -> str:
    return ", ".join(f"{name} `{part}`" for name, part in named.items())


def _anchor(one: Recipe) -> str:
    """What GitHub makes of the section's heading."""
    return one.name.replace(".", "")
