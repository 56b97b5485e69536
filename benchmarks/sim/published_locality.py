"""Published locality of models' routing, that synthetic traces are calibrated to."""

from __future__ import annotations

from typing import NamedTuple

from spmoe.machine.geometry import Geometry


class Locality(NamedTuple):
    """What is published of a model's routing, one token at a time.

    GitHub repository harshithkantamneni/moe-speed-of-light (not peer-reviewed): text that the model itself sampled,
    32,601 to 152,470 tokens in conversations of 450 to 950, one LRU or MIN cache per layer, carried across
    conversations, the first tenth not counted.  Reads and shares from prereg/policy_study_outcome.md (commit 3a74200),
    reuse from prereg/provenance/provenance.md (fae7444) and prereg/provenance_ext/provenance.md (e392e9c), column S.
    """

    lru: tuple[float, float, float]  # reads per token, all layers, at each of `BUDGETS`
    min: tuple[float, float, float]  # the same of MIN with bypass
    share: tuple[float, float, float]  # percent of a layer's routings that go to so many of its experts, the most used
    reuse: float  # percent of a token's experts that the token before it had too


BUDGETS = (0.125, 0.25, 0.375)  # of each layer's experts
PUBLISHED = {
    "deepseek-v2-lite": Locality((108.7, 82.7, 61.9), (74.2, 46.8, 30.4), (17, 31, 44), 25.4),
    "phi-3.5-moe": Locality((36.1, 24.0, 15.9), (26.3, 14.4, 8.4), (22, 39, 53), 43.2),
    "qwen3-30b-a3b": Locality((148.2, 73.2, 35.5), (86.5, 35.4, 15.7), (26, 43, 58), 43.8),
    "olmoe-1b-7b": Locality((68.3, 44.6, 30.2), (47.5, 25.5, 14.9), (31, 50, 63), 46.2),
    "gpt-oss-20b": Locality((51.4, 31.1, 18.0), (35.8, 17.4, 8.8), (25, 45, 61), 46.4),
    "gpt-oss-120b": Locality((53.7, 28.3, 15.3), (30.3, 13.7, 6.9), (36, 56, 71), 31.0),
}
GLOBAL_LRU = {"deepseek-v2-lite": 47.7}  # hit rate in percent at 25 % cache: HybriMoE, arXiv 2504.05897


def published_figures(model: Geometry) -> dict[str, float]:
    """What is published of `model`, in percent, by the names that `synthetic_figures` gives."""
    published = PUBLISHED[model.name]
    needs = model.layers * model.top_k
    figures = {"reuse": published.reuse}
    for index, budget in enumerate(BUDGETS):
        figures[f"lru/{budget:g}"] = 100 * (1 - published.lru[index] / needs)
        figures[f"min/{budget:g}"] = 100 * (1 - published.min[index] / needs)
        figures[f"share/{budget:g}"] = published.share[index]
    if model.name in GLOBAL_LRU:
        figures["global-lru/0.25"] = GLOBAL_LRU[model.name]
    return figures
