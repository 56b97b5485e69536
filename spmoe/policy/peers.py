"""The systems that we compare with, as rows of the registry; `spmoe.policy.registry` says what a row tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spmoe.policy.eviction.least_stale import LeastStale
from spmoe.policy.eviction.lfu import Lfu
from spmoe.policy.parts.admission import InitialOnly
from spmoe.policy.parts.gating import SensitivityGate
from spmoe.policy.parts.horizon import NextLayer, Unlimited
from spmoe.policy.parts.io_plan import AllAtOnce, OneByOne
from spmoe.policy.parts.miss_action import CheaperOf, Fetch, HostCompute
from spmoe.policy.parts.placement import LayerPools, OneLayer, PopularSet, WholeLayers
from spmoe.policy.parts.runtime import Runtime
from spmoe.policy.parts.speculation import NoSpeculation
from spmoe.policy.recipe import Recipe
from spmoe.policy.sp_moe.gates import NextGate
from spmoe.policy.systems.adapmoe import LayerShares
from spmoe.policy.systems.finemoe import ExpertMap, MapAware
from spmoe.policy.systems.moe_infinity import ActivationAware, ActivationMatrix
from spmoe.policy.systems.moe_spac import Levels, UtilityCounters

MIXTRAL_OFFLOADING = "Eliseev and Mazur, arXiv 2312.17238"
MIXTRAL_OFFLOADING_CODE = f"{MIXTRAL_OFFLOADING}; github.com/dvmazur/mixtral-offloading, commit ce54518"
MOE_INFINITY = "Xue et al., MoE-Infinity, arXiv 2401.14361"
FINEMOE_PAPER = "Yu et al., FineMoE, arXiv 2502.05370"
FINEMOE = f"{FINEMOE_PAPER}; github.com/IntelliSys-Lab/FineMoE-EuroSys26, commit 5c58468"
LLAMA_CPP = "github.com/ggml-org/llama.cpp"

EMPTY = "starts empty instead of with the experts of highest id"
WAITS = "a prefetch that finds no slot waits, and those behind it, where the code drops it"
BUFFERS = (
    "what is in a buffer, a wrong prefetch or a victim, can still be used until it is overwritten, where the "
    "original frees it"
)


def with_speculation(recipe: Recipe, assumed: str, **changes: Any) -> tuple[Recipe, Recipe]:
    """A system that knows no speculation, and the same, with `changes`, under speculation: an extension of ours."""
    extended = replace(
        recipe,
        name=f"{recipe.name}.spec",
        summary=f"under speculation, our extension: {recipe.summary}",
        differs="; ".join(filter(None, (recipe.differs, f"ours: {assumed}"))),
        **changes,
    )
    return replace(recipe, speculation=NoSpeculation()), extended


FRAMEWORKS = (
    Recipe(
        name="accelerate.layer-stream",
        summary="the first layers stay as far as they fit; of the others every expert is copied, each time",
        source="Hugging Face accelerate, device_map with CPU offload",
        differs="written from what its documentation says, without a commit; follows gamma, since transformers can "
        "speculate; its copies come from pageable memory, here they go at the link's full speed; its prompts take "
        "the same path",
        placement=WholeLayers(),
        admission=InitialOnly(),
        io=AllAtOnce(),
        miss=Fetch(whole_layer=True),
        runtime=Runtime(overlap=False),
    ),
    Recipe(
        name="llamacpp.cpu-moe",
        summary="the CPU computes all experts; nothing is cached",
        source=f"{LLAMA_CPP}, --cpu-moe",
        differs="written from what its documentation says, without a commit; follows gamma, since llama.cpp can "
        "speculate; batches of 32 tokens or more (prompts) fetch the experts they use, as llama.cpp's op offload does",
        placement=OneLayer(),
        admission=InitialOnly(),
        miss=HostCompute(),
    ),
    Recipe(
        name="llamacpp.n-cpu-moe",
        summary="the last layers are on the GPU as far as they fit; the CPU computes the experts of the others",
        source=f"{LLAMA_CPP}, --n-cpu-moe",
        differs="as llamacpp.cpu-moe; N is as small as the slots allow, two of which are left for prompts",
        placement=WholeLayers(last=True, staging=2),
        admission=InitialOnly(),
        miss=HostCompute(),
    ),
)

ADAPMOE_DIFFERS = (
    "one prediction accuracy for all layers where the code has a table of Mixtral's; two slots per layer or more, "
    "where "
    f"there are as many (with one the code computes wrong results); {EMPTY}; {BUFFERS}; misses come in routing "
    "order; no "
    "matrix computes before its whole expert is there"
)
ADAPMOE = Recipe(
    name="adapmoe",
    summary="slots per layer by expected misses, LRU; one expert of the next layer's gate, which may block",
    source="Zhong et al., AdapMoE, arXiv 2408.10284; github.com/PKU-SEC-Lab/AdapMoE, commit 2cfe8df",
    differs=ADAPMOE_DIFFERS,
    placement=LayerShares(buffers=6),
    predictor=NextGate(top_n=2, most=1, one_token=True),
    horizon=NextLayer(),
    io=OneByOne(depth=5),
    runtime=Runtime(prefetch_blocks=True, copies_per_load=3),
)

PEERS = (
    *with_speculation(
        Recipe(
            name="mixtral-offloading.released",
            summary="an LRU cache per layer, no prefetch; copies and compute take turns, victims are written back",
            source=MIXTRAL_OFFLOADING_CODE,
            differs=f"{EMPTY}; experts of a layer come in routing order instead of by id; a layer that needs more "
            "than its slots runs in waves",
            placement=LayerPools(buffers=4),
            io=OneByOne(depth=3),
            runtime=Runtime(overlap=False, write_back=True),
        ),
        "a window's experts are served as those of a longer prompt would be",
    ),
    *with_speculation(
        Recipe(
            name="mixtral-offloading.paper",
            summary="an LRU cache per layer; up to two experts of the next layer's gate go into spare buffers",
            source=f"{MIXTRAL_OFFLOADING}, sections 3.1 to 3.3",
            differs="copies overlap with compute; the released code does not prefetch; victims are not written back; "
            f"{EMPTY}; {BUFFERS}",
            placement=LayerPools(buffers=4),
            predictor=NextGate(most=2),
            horizon=NextLayer(),
            io=OneByOne(depth=3),
        ),
        "the gates of all tokens of the window are merged, and still at most two experts fetched",
    ),
    Recipe(
        name="mixtral-offloading.no-preloading",
        summary="the report's ablation: its LRU cache per layer without prefetch",
        source=f"{MIXTRAL_OFFLOADING}, Table 2",
        differs=f"copies overlap with compute; victims are not written back; {EMPTY}",
        placement=LayerPools(buffers=4),
        io=OneByOne(depth=3),
        speculation=NoSpeculation(),
    ),
    Recipe(
        name="mixtral-offloading.no-lru",
        summary="the report's ablation: no cache; the experts that a layer needs are fetched each time",
        source=f"{MIXTRAL_OFFLOADING}, Table 2",
        differs="the slots of one layer serve as buffers: a model whose layers together need no more than that would "
        "hit; copies overlap with compute",
        placement=OneLayer(),
        io=OneByOne(depth=3),
        speculation=NoSpeculation(),
    ),
    Recipe(
        name="mixtral-offloading.naive",
        summary="the report's baseline: all experts of a layer are fetched each time",
        source=f"{MIXTRAL_OFFLOADING}, Table 2",
        differs="the slots of one layer serve as buffers; the copies of a layer overlap with nothing but its attention",
        placement=OneLayer(),
        io=AllAtOnce(),
        miss=Fetch(whole_layer=True),
        speculation=NoSpeculation(),
    ),
    *with_speculation(
        ADAPMOE,
        "it prefetches with several tokens in flight too, still one expert at most",
        predictor=NextGate(top_n=2, most=1),
    ),
    replace(
        ADAPMOE,
        name="adapmoe.gated",
        summary="lossy: adapmoe, leaving out a token's second expert where its weight is small",
        differs=f"{ADAPMOE_DIFFERS}; thresholds between those of the first and last layer are interpolated; of more "
        "than two experts only the last is judged; weights count as equal where the trace has none; its slots are "
        "shared out as without gating",
        gate=SensitivityGate(),
        speculation=NoSpeculation(),
    ),
    *with_speculation(
        Recipe(
            name="moe-infinity.released",
            summary="no prefetch; one LFU cache, experts of a layer in the order of their ids",
            source=f"{MOE_INFINITY}; github.com/TorchMoE/MoE-Infinity, commit d617801",
            differs="its accounting, by which hits shrink the cache, is left out; counts are never reset; the fetch "
            "thread does not hold up computation",
            eviction=Lfu(),
            io=OneByOne(depth=1),
            miss=Fetch(in_order=True),
        ),
        "a window's experts are served as those of a longer prompt would be",
    ),
    *with_speculation(
        Recipe(
            name="moe-infinity.paper",
            summary="prefetch by the most similar earlier request, nearest layers first; activation-aware cache",
            source=f"{MOE_INFINITY}, sections 4.5 to 4.7",
            differs=f"{WAITS}; "
            "copies overlap with compute, as the paper has it (the code of 5e096b4 takes turns); its scoring "
            "formulas are read off a garbled text of the paper; experts that the matched request never used are not "
            "wished for; requests are stored as they finish, where the paper starts with a full store; one match, "
            "not several; as in the code, what is matched are the counts of the request so far by the mean of their "
            "rows' cosines, 1,000 requests are stored, and the decay is over layers + 1; a prefetch displaces only a "
            "lower score",
            predictor=ActivationMatrix(),
            horizon=Unlimited(),
            eviction=ActivationAware(),
            io=OneByOne(depth=1),
        ),
        "a window counts as one pass of several tokens",
    ),
    *with_speculation(
        Recipe(
            name="finemoe.released",
            summary="prefetch by the most similar earlier iteration: all layers from seven ahead on; map-aware cache",
            source=FINEMOE,
            differs=f"{WAITS}; "
            "experts without tokens are not fetched; stored are as many iterations as in the code, but all "
            "online; the first layer is never prefetched, and its later wishes do not cancel its wishes by "
            "embedding; a demand load displaces a protected expert if nothing else can go, where the code overflows "
            "its budget; a prompt is one map of the experts it touched, all alike; layer-0 routing stands in for "
            "embeddings, and for gate probabilities where the trace has none the weights of the chosen experts",
            predictor=ExpertMap(distance=6, band="rest"),
            horizon=Unlimited(),
            eviction=MapAware(truncated=True),
            io=OneByOne(depth=1),
            miss=Fetch(in_order=True),
            runtime=Runtime(overlap=False),
        ),
        "a window's gate probabilities are added up to one map",
    ),
    *with_speculation(
        Recipe(
            name="finemoe.paper",
            summary="prefetch by the most similar earlier iteration: one layer, three ahead; map-aware cache",
            source=f"{FINEMOE_PAPER}, sections 4.2 to 4.5 and 6.1",
            differs=f"{WAITS}; "
            "copies overlap with compute, as the paper has it (the code takes turns); the store fills "
            "online; a search takes no time; the first layer is never prefetched; a demand load displaces a "
            "protected expert if nothing else can go; a prompt is one map of the experts it touched, all alike; "
            "layer-0 routing stands in for embeddings, and for gate probabilities where the trace has none the "
            "weights of the chosen experts",
            predictor=ExpertMap(distance=3),
            horizon=Unlimited(),
            eviction=MapAware(),
            io=OneByOne(depth=1),
        ),
        "a window's gate probabilities are added up to one map",
    ),
    *with_speculation(
        Recipe(
            name="fiddler",
            summary="the most used experts of other requests stay; a miss is computed on the CPU or copied, by cost",
            source="Kamahori et al., Fiddler, arXiv 2402.07033; github.com/efeslab/fiddler, commit 227715b",
            differs="costs are those of the machine at hand, where the code has 7 per token against 70 per copy; "
            "popularity is that of other requests; copies from pageable memory go at the link's full speed; an "
            "expert still in the spare slot is not copied again; the cost of a copy is that of one piece, though "
            "three are paid",
            placement=PopularSet(staging=1),
            admission=InitialOnly(),
            io=OneByOne(depth=1),
            miss=CheaperOf(),
            runtime=Runtime(overlap=False, host_overlap=False, copies_per_load=3),
        ),
        "the rule by cost serves windows as it serves prompts",
    ),
    *with_speculation(
        Recipe(
            name="least-stale",
            summary="no prefetch; experts not used in this pass leave first",
            source="Hoang et al., SpecMD, arXiv 2602.03921",
            differs="the paper's definition was not at hand; second-hand accounts agree that what this pass has not "
            "used leaves first. The order within the two sets, by layer, is ours and makes all the difference: by "
            "last use the rule would be LRU. Its prefetcher is left out",
            eviction=LeastStale(),
        ),
        "a window is one pass",
    ),
    Recipe(
        name="moe-spac",
        summary="counters of tokens per expert in verification drive prefetch and eviction; the CPU computes misses",
        source="MoE-SpAc, arXiv 2603.09983; github.com/lshAlgorithm/MoE-SpAc, commit 77bb9cf",
        differs="the three slices of an expert go one after the other, not from three threads; the CPU works beside "
        "the GPU, which the code manages in part; its balancer is absent there, and here; reaching a layer drops all "
        "that is queued for it; experts that a prompt fetched stay until they are displaced",
        predictor=UtilityCounters(),
        horizon=Unlimited(),
        eviction=Levels(),
        io=OneByOne(depth=1),
        miss=HostCompute(),
        runtime=Runtime(copies_per_load=3),
    ),
)
