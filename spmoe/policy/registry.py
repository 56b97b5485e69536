"""Every policy by its dotted name.  To add one, add a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from spmoe.errors import InputError
from spmoe.policy.admission import InitialOnly
from spmoe.policy.clairvoyant import Clairvoyant, Farthest
from spmoe.policy.horizon import CutoffLayer, NextLayer, Unlimited
from spmoe.policy.placement import LayerPools, PopularSet
from spmoe.policy.planner import Batched
from spmoe.policy.prefetch import DraftGate, NextGate
from spmoe.policy.recipe import Recipe

SP_MOE = "Chen et al., SP-MoE, arXiv 2510.10302"


def registry(recipes: Iterable[Recipe]) -> Mapping[str, Recipe]:
    """Recipes by name, in the order given.  Raises ValueError where two share a name."""
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in named:
            raise ValueError(f"two recipes are called {recipe.name}")
        named[recipe.name] = recipe
    return MappingProxyType(named)


RECIPES = registry(
    (
        Recipe(
            name="on-demand.lru",
            summary="no prefetch; one LRU cache for all layers",
            source="the baseline that every paper compares with",
        ),
        Recipe(
            name="on-demand.lru-per-layer",
            summary="no prefetch; an LRU cache per layer",
            source="the cache of mixtral-offloading (arXiv 2312.17238), with copies that overlap compute",
            placement=LayerPools(),
        ),
        Recipe(
            name="static.popular",
            summary="the most used experts of other requests stay; the rest streams through two slots",
            source="the placement of Fiddler (arXiv 2402.07033), with misses fetched instead of computed on the CPU",
            placement=PopularSet(),
            admission=InitialOnly(),
        ),
        Recipe(
            name="next-gate",
            summary="prefetch from the next layer's gate; one LRU cache",
            source="the prefetch of mixtral-offloading's report (arXiv 2312.17238), k experts for each token",
            predictor=NextGate(),
            horizon=NextLayer(),
        ),
        Recipe(
            name="spmoe.paper",
            summary="draft-guided prefetch up to the cutoff layer, batched I/O; one LRU cache",
            source=f"{SP_MOE}; assumed: one critical expert per token and layer, predicted residents count as used",
            predictor=DraftGate(top_n=1),
            horizon=CutoffLayer(),
            io=Batched(),
        ),
        Recipe(
            name="spmoe.per-layer",
            summary="as spmoe.paper, with an LRU cache per layer",
            source=f"{SP_MOE}; the cache split by layer is ours",
            placement=LayerPools(),
            predictor=DraftGate(top_n=1),
            horizon=CutoffLayer(),
            io=Batched(),
        ),
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
)


def recipe(name: str) -> Recipe:
    """The recipe of that name; InputError, naming those there are, for an unknown one."""
    try:
        return RECIPES[name]
    except KeyError:
        raise InputError(f"unknown policy {name!r}; there are {', '.join(RECIPES)}") from None
