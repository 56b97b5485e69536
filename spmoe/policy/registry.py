"""Every policy by its dotted name.  To add one, add a row, here or among the peers.

A row's `source` names the paper and, where there is code, its commit; `differs` says where the row departs from it and
what had to be assumed.  What several rows leave out alike: disk tiers, pageable memory, and bugs that give wrong
results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from spmoe.errors import InputError
from spmoe.policy.foresight.deadline import ForesightAhead
from spmoe.policy.foresight.next_use import Foresight, LatestExpected, RecentUse
from spmoe.policy.oracle.clairvoyant import Clairvoyant, Farthest
from spmoe.policy.parts.admission import ByValue, InitialOnly
from spmoe.policy.parts.horizon import CutoffLayer, NextLayer, Unlimited
from spmoe.policy.parts.io_plan import Batched
from spmoe.policy.parts.miss_action import Split
from spmoe.policy.parts.placement import HindsightSet, LayerPools, PopularSet
from spmoe.policy.parts.speculation import RunAhead, WorthDrafting
from spmoe.policy.peers import FRAMEWORKS, MIXTRAL_OFFLOADING, PEERS
from spmoe.policy.recipe import Recipe
from spmoe.policy.sp_moe.draft_then_gate import DraftThenGate
from spmoe.policy.sp_moe.gates import DraftGate, NextGate
from spmoe.policy.sp_moe.popular import Popular

SP_MOE = "Chen et al., SP-MoE, arXiv 2510.10302"
SP_MOE_DIFFERS = (
    "there is no public code; assumed: one critical expert per token and layer, predicted residents count as used, "
    "the length of drafts is the configured one, and (decisive; see docs/validation.md) one LRU cache for all layers"
)

FORECASTS = ("next_gate", "draft")
"""The forecasts that a recipe may need.  A driver that has one of them has those before it too, or could have."""


def registry(recipes: Iterable[Recipe]) -> Mapping[str, Recipe]:
    """Recipes by name, in the order given.

    Raises ValueError where two share a name, and where a fallback is missing, needs no less, or changes the output.
    """
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in named:
            raise ValueError(f"two recipes are called {recipe.name}")
        named[recipe.name] = recipe
    for recipe in named.values():
        if recipe.fallback:
            _check_fallback(recipe, named)
    return MappingProxyType(named)


def _check_fallback(one: Recipe, named: Mapping[str, Recipe]) -> None:
    other = named.get(one.fallback)
    if other is None:
        raise ValueError(f"{one.name} falls back to {one.fallback}, and no recipe is called that")
    # Each step down asks for easier forecasts, so no chain of fallbacks comes back to where it was.
    if _hardest(other) >= _hardest(one) or other.needs.difference(one.needs, FORECASTS):
        raise ValueError(f"{one.name} falls back to {other.name}, which must need less")
    if one.lossless and not other.lossless:
        raise ValueError(f"{one.name} falls back to {other.name}, which changes the output")


def _hardest(one: Recipe) -> int:
    """How hard the forecasts are to come by that a recipe needs; 0 where it needs none."""
    return max((FORECASTS.index(name) + 1 for name in one.needs.intersection(FORECASTS)), default=0)


BASELINES = (
    Recipe(
        name="on-demand.lru",
        summary="no prefetch; one LRU cache for all layers",
        source="the baseline that every paper compares with",
    ),
    Recipe(
        name="on-demand.lru-per-layer",
        summary="no prefetch; an LRU cache per layer",
        source=f"the cache of mixtral-offloading ({MIXTRAL_OFFLOADING})",
        differs="copies overlap with compute, and the slots that it keeps as buffers are cache",
        placement=LayerPools(),
    ),
    Recipe(
        name="static.popular",
        summary="the most used experts of other requests stay; the rest streams through two slots",
        source="the placement of Fiddler (Kamahori et al., arXiv 2402.07033)",
        differs="misses are fetched instead of computed on the CPU",
        placement=PopularSet(),
        admission=InitialOnly(),
    ),
    Recipe(
        name="static.hindsight",
        summary="oracle: the best fixed set for this very trace stays; the rest streams through two slots",
        source="what popularity could reach at most",
        placement=HindsightSet(),
        admission=InitialOnly(),
    ),
    Recipe(
        name="next-gate",
        summary="prefetch from the next layer's gate; one LRU cache",
        source=f"the prefetch of mixtral-offloading's report ({MIXTRAL_OFFLOADING})",
        differs="k experts for each token of the window, straight into the cache",
        predictor=NextGate(),
        horizon=NextLayer(),
        fallback="spmoe.popular",
    ),
)

SP_MOE_NEXT_GATE = Recipe(
    name="spmoe.next-gate",
    summary="as spmoe.paper, with forecasts from the next layer's gate; one LRU cache",
    source=SP_MOE,
    differs="ours, for drafts whose layers do not match the target's, so that they forecast nothing: the target's "
    "gates forecast one layer ahead, k experts for each token of the window; for the rest as spmoe.paper",
    predictor=NextGate(),
    horizon=NextLayer(),
    io=Batched(),
    fallback="spmoe.popular",
)
SP_MOE_POPULAR = Recipe(
    name="spmoe.popular",
    summary="as spmoe.paper, with the most used experts of the next layer as forecasts; one LRU cache",
    source=SP_MOE,
    differs="ours, for runs without any forecasts: prefetched are the k experts of the next layer that had most tokens "
    "so far; for the rest as spmoe.paper",
    predictor=Popular(),
    horizon=NextLayer(),
    io=Batched(),
)

SP_MOE_ROWS = (
    Recipe(
        name="spmoe.paper",
        summary="draft-guided prefetch up to the cutoff layer, batched I/O; one LRU cache",
        source=SP_MOE,
        differs=SP_MOE_DIFFERS,
        predictor=DraftGate(top_n=1),
        horizon=CutoffLayer(),
        io=Batched(),
        fallback="spmoe.next-gate",
    ),
    SP_MOE_NEXT_GATE,
    SP_MOE_POPULAR,
    Recipe(
        name="spmoe.per-layer",
        summary="as spmoe.paper, with an LRU cache per layer",
        source=SP_MOE,
        differs="the cache split by layer is ours; for the rest as spmoe.paper",
        placement=LayerPools(),
        predictor=DraftGate(top_n=1),
        horizon=CutoffLayer(),
        io=Batched(),
        fallback="spmoe.per-layer.next-gate",
    ),
    replace(
        SP_MOE_NEXT_GATE,
        name="spmoe.per-layer.next-gate",
        summary="as spmoe.per-layer, with forecasts from the next layer's gate",
        differs="as spmoe.next-gate, with the cache of spmoe.per-layer",
        placement=LayerPools(),
        fallback="spmoe.per-layer.popular",
    ),
    replace(
        SP_MOE_POPULAR,
        name="spmoe.per-layer.popular",
        summary="as spmoe.per-layer, with the most used experts of the next layer as forecasts",
        differs="as spmoe.popular, with the cache of spmoe.per-layer",
        placement=LayerPools(),
    ),
    Recipe(
        name="spmoe.refined",
        summary="as spmoe.per-layer; the next layer's gate corrects the draft, layer by layer",
        source=SP_MOE,
        differs="ours: the target's state one layer before replaces what is queued on the draft's word, keeps the "
        "residents that it names, and fetches no more than a layer's time allows; for the rest as spmoe.per-layer",
        placement=LayerPools(),
        predictor=DraftThenGate(top_n=1),
        horizon=CutoffLayer(),
        io=Batched(),
        fallback="spmoe.per-layer.next-gate",
    ),
)

FORESIGHT_EVICTION = Recipe(
    name="spmoe.foresight.eviction",
    summary="no prefetch; who is expected to be needed again latest leaves, by the pass, the draft and recent use",
    source="ours (docs/foresight.md)",
    predictor=Foresight(),
    admission=ByValue(),
    eviction=LatestExpected(),
    io=Batched(),
    fallback="spmoe.foresight.history",
)

FORESIGHT_ROWS = (
    replace(
        FORESIGHT_EVICTION,
        name="spmoe.foresight.history",
        summary="no prefetch; who is expected to be needed again latest leaves, by the pass and recent use",
        predictor=RecentUse(),
        fallback="",
    ),
    FORESIGHT_EVICTION,
    replace(
        FORESIGHT_EVICTION,
        name="spmoe.foresight.prefetch",
        summary="as spmoe.foresight.eviction, and fetches ahead what is likely enough, earliest deadline first",
        predictor=ForesightAhead(),
    ),
    replace(
        FORESIGHT_EVICTION,
        name="spmoe.foresight.split",
        summary="as spmoe.foresight.eviction; GPU, link and CPU share a layer, and an idle link fetches for later",
        differs="without a CPU it is spmoe.foresight.prefetch",
        predictor=ForesightAhead(),
        miss=Split(),
    ),
    replace(
        FORESIGHT_EVICTION,
        name="spmoe.foresight.run-ahead",
        summary="as spmoe.foresight.eviction; while the link is awaited, the draft goes on past the window",
        speculation=RunAhead(),
    ),
    replace(
        FORESIGHT_EVICTION,
        name="spmoe.foresight",
        summary="step-aware eviction; GPU, link and CPU share a layer; loads for later; drafts as long as is worth it",
        differs="drafts go on past the window; with a gamma their length is given; without a CPU misses are fetched",
        predictor=ForesightAhead(),
        miss=Split(),
        speculation=WorthDrafting(),
    ),
)

ORACLES = (
    Recipe(
        name="clairvoyant",
        summary="oracle: knows all windows to come, loads what MIN loads as early as it can",
        source="Belady 1966; Cao et al., SIGMETRICS 1995 (aggressive prefetching)",
        predictor=Clairvoyant(),
        horizon=Unlimited(),
        eviction=Farthest(),
        io=Batched(),
    ),
)

RECIPES = registry(BASELINES + SP_MOE_ROWS + FORESIGHT_ROWS + FRAMEWORKS + PEERS + ORACLES)


def select(policies: str | Recipe | Sequence[str | Recipe]) -> list[Recipe]:
    """The recipes of these names or patterns ("spmoe.*"), in the order given, each once; "all" stands for every one.

    A recipe that is no row here stands for itself.  Raises InputError for no name, an unknown one, a pattern that fits
    none, and for a recipe that goes by another's name.
    """
    chosen: dict[str, Recipe] = {}
    for name in [policies] if isinstance(policies, str | Recipe) else policies:
        if isinstance(name, Recipe):
            if chosen.setdefault(name.name, RECIPES.get(name.name, name)) != name:
                raise InputError(f"policies: another recipe is called {name.name}")
            continue
        if not isinstance(name, str):
            raise InputError(f"policies: expected names or recipes, got {name!r}")
        if name == "all" or set(name) & set("*?["):
            fitting = [one for one in RECIPES.values() if fnmatchcase(one.name, "*" if name == "all" else name)]
            if not fitting:
                raise InputError(f"no policy is called like {name!r}; there are {', '.join(RECIPES)}")
        else:
            fitting = [recipe(name)]
        chosen.update((one.name, one) for one in fitting)
    if not chosen:
        raise InputError("policies: expected at least one")
    return list(chosen.values())


def recipe(name: str) -> Recipe:
    """The recipe of that name; InputError, naming those there are, for an unknown one."""
    try:
        return RECIPES[name]
    except KeyError:
        raise InputError(f"unknown policy {name!r}; there are {', '.join(RECIPES)}") from None


def fallback(one: Recipe, lacking: Set[str]) -> Recipe | None:
    """The row to take where the forecasts `lacking` ("draft", "next_gate") are not to be had: the first of its
    fallbacks that needs none of them; None where there is none."""
    while one.fallback:
        one = RECIPES[one.fallback]
        if not one.needs & lacking:
            return one
    return None
