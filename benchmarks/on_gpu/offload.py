"""The engine beside Hugging Face accelerate's CPU offload: the same random model, the same tokens.

accelerate knows no experts: it copies whole layers when they are reached.  Twice: of all layers (`cpu_offload` of the
model), and with as many whole layers left on the device as take the bytes that the engine's slots take there, which is
how a `device_map` would place them.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from benchmarks.engine.random_pair import PairShape, write_random_pair
from benchmarks.on_gpu.worker import Task
from engine.checkpoints.model_pair import load_whole
from engine.checkpoints.refusing import quiet
from engine.engine import Engine

PROMPT: Final = list(range(60, 92))
GAMMA: Final = 4


class Timed(NamedTuple):
    """Tokens that were put out, and ms per token behind the first output."""

    tokens: tuple[int, ...]
    tpot_ms: float


class Watch(BaseStreamer):
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        pass


def offload(task: Task) -> dict[str, Any]:
    """TPOT of each way at each size of the cache, and accelerate's over the engine's."""
    settings = task.settings
    shape = PairShape(
        layers=settings["layers"],
        hidden=settings["hidden"],
        expert_width=settings["expert_width"],
        dense_width=settings["expert_width"],
    )
    there = importlib.util.find_spec("accelerate") is not None
    with tempfile.TemporaryDirectory() as folder:
        target, draft = write_random_pair(Path(folder), shape)
        rows = [_engine_rows(task, target, draft, cache) for cache in settings["caches"]]
        if there:
            plan = {"cpu_offload": 0, **{f"cache {row['cache']:g}": row["slot_bytes"] for row in rows}}
            rivals = {}
            for name, room in plan.items():
                rivals[name] = _accelerate(task, target, room)
                gc.collect()  # Hooks and layers hold on to each other.
            for row in rows:
                row["accelerate"] = _beside(row, rivals, f"cache {row['cache']:g}")
    for row in rows:
        for each in row["engine"].values():
            del each["tokens"]
    return {
        "what": f"random Mixtral of {shape.layers} layers, hidden {shape.hidden}, {shape.experts} experts of width "
        f"{shape.expert_width}, float32, greedy; the draft is random, too, and guesses some of its tokens",
        "rows": rows,
        **({} if there else {"left_out": "accelerate is not installed"}),
    }


def _engine_rows(task: Task, target: Path, draft: Path, cache: float) -> dict[str, Any]:
    """With and without the draft."""
    found: dict[str, Any] = {}
    room = 0
    for policy, second in (("spmoe.per-layer", draft), ("on-demand.lru-per-layer", None)):
        options = {"policy": policy, "cache": cache, "device": str(task.device), "dtype": "float32"}
        with Engine.from_pretrained(target, second, **options, **({"gamma": GAMMA} if second else {})) as engine:
            timed = _rounds(task, lambda: _by_engine(engine, task.settings["tokens"]))
            room = engine.plan.slot_bytes
        found[policy if second else f"{policy}, no draft"] = {
            "tpot_ms": round(timed.tpot_ms, 3),
            "tokens": timed.tokens,
        }
    return {"cache": cache, "slot_bytes": room, "engine": found}


def _by_engine(engine: Engine, tokens: int) -> Timed:
    seen, output = [], []
    for piece in engine.stream(PROMPT, tokens, ignore_eos=True):
        seen.append((time.perf_counter(), len(piece.tokens)))
        output += piece.tokens
    return Timed(tuple(output), _tpot_ms(seen))


def _accelerate(task: Task, target: Path, room: int) -> Timed:
    """With whole layers on the device as far as their experts take `room` bytes; without room all is offloaded."""
    from accelerate import cpu_offload

    model = load_whole(target, torch.float32, torch.device("cpu"), None)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=task.settings["tokens"])
    layers = list(model.model.layers)
    if not room:
        cpu_offload(model, execution_device=task.device)
    else:
        kept = 0
        for layer in layers:
            kept += sum(each.nbytes for each in layer.mlp.experts.parameters())
            if kept > room:
                cpu_offload(layer, execution_device=task.device)
            else:
                layer.to(task.device)
        for part in (model.model.embed_tokens, model.model.norm, model.model.rotary_emb, model.lm_head):
            part.to(task.device)
    return _rounds(task, lambda: _by_transformers(model, task))


@torch.inference_mode()
def _by_transformers(model: AutoModelForCausalLM, task: Task) -> Timed:
    watch = Watch()
    prompt = torch.tensor([PROMPT], device=task.device)
    with quiet():
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=watch)
    # The prompt is put first.
    return Timed(tuple(output[0, len(PROMPT) :].tolist()), _tpot_ms(watch.seen[1:]))


def _rounds(task: Task, way: Callable[[], Timed]) -> Timed:
    """The median of several rounds, behind one that warms up, or of as many as there is time for."""
    way()
    found = []
    while len(found) < task.settings["rounds"] and (not found or time.monotonic() < task.until):
        found.append(way())
    return Timed(found[0].tokens, median(each.tpot_ms for each in found))


def _beside(row: dict[str, Any], rivals: dict[str, Timed], same: str) -> dict[str, Any]:
    """Both ways of accelerate; `over_engine` is how many times as long a token takes."""
    ours = row["engine"]
    found: dict[str, Any] = {}
    for name, key in (("cpu_offload", "cpu_offload"), ("layers in as many bytes", same)):
        rival = rivals[key]
        found[name] = {
            "tpot_ms": round(rival.tpot_ms, 3),
            "over_engine": {policy: round(rival.tpot_ms / each["tpot_ms"], 3) for policy, each in ours.items()},
            "same_tokens": {policy: _agree(rival.tokens, each["tokens"]) for policy, each in ours.items()},
        }
    return found


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens up to the first that differs: rounding may choose between two that are all but equally likely."""
    both = list(zip(one, other, strict=False))
    return next((place for place, (ours, theirs) in enumerate(both) if ours != theirs), len(both))


def _tpot_ms(seen: list[tuple[float, int]]) -> float:
    return (seen[-1][0] - seen[0][0]) * 1e3 / sum(count for _, count in seen[1:])
