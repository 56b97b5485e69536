"""At which share of a GPU's memory bandwidth the Triton kernels read the weights of experts.

    python -m benchmarks.engine.kernel_bandwidth [--device cuda] [--model NAME ...] [--tokens N ...] [--tilings]

Experts of Mixtral-8x7B's and DeepSeek-V2-Lite's sizes, random, in bfloat16, all of a layer in slots.  For every number
of tokens several layers are routed at random and computed one after the other, so that no cache holds what comes next:

- `kernels`: the two kernels alone.  Weights read per second stand beside the bytes per second that a large copy within
  the device reads and writes in the same run.
- `layer`: from the router's choice to what its experts add up to, by the kernels and by torch's operations.

Times are the device's: work is enqueued behind a pause, so that no host holds it up; `called` is the layer without the
pause, as the engine calls it.  Medians over readings with the quartiles on either side.  `--tilings` tries other ways
of cutting the work up, too, at one token and at eight.  All goes to benchmarks/results/kernel_bandwidth_cuda.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import torch
from torch.nn.functional import silu

from benchmarks.files import RESULTS, write_json
from engine.memory.layout import Layout
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.eager import ExpertRows
from engine.moe.gated_mlp import Gated
from engine.profiling.fit import Median

RESULT = RESULTS / "kernel_bandwidth_cuda.json"
TOKENS = (1, 2, 4, 8, 16)
TILED_TOKENS = (1, 8)
LAYERS = 8
"""Routed at random, one after the other."""
READINGS = 30
PAUSE = 50_000_000
"""Cycles, some 30 ms: in which a host enqueues the rest, or so much that it stays ahead."""
ROOM = 2**16
"""Bytes of weights that a program of another tiling may have on their way: so many fit any multiprocessor."""
COPY = 2**30
"""Bytes: many times what caches hold."""

Timer = Callable[[Callable[[], object]], Median]


class Sizes(NamedTuple):
    """Of a model's experts; `copies` of all of a layer's lie in slots, so that layers differ in theirs."""

    hidden: int
    width: int
    experts: int
    top_k: int
    copies: int


MODELS: Final = {
    "mixtral-8x7b": Sizes(4096, 14336, 8, 2, 2),
    "deepseek-v2-lite": Sizes(2048, 1408, 64, 6, 4),
}


class Experts:
    """An experts module, as far as its weights do not lie in it."""

    has_gate = True
    is_transposed = False
    is_concatenated = True

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return silu(gate) * up


class Layer(NamedTuple):
    """What a router said of some tokens; expert e lies in slot `first` + e."""

    states: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    counts: dict[int, int]
    first: int


class Subject:
    """Experts in slots, and layers that route to them."""

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.sizes = sizes
        self.device = device
        hidden, width = sizes.hidden, sizes.width
        self.layout = Layout.of({"gate_up_proj": ((2 * width, hidden), dtype), "down_proj": ((hidden, width), dtype)})
        self.slots = SlotBuffer(self.layout, sizes.experts * sizes.copies, device)
        self.module = Experts()
        self.gated = Gated.of(self.module, self.layout, "random")
        self._dtype = dtype
        generator = torch.Generator(device).manual_seed(0)
        for slot in range(self.slots.slots):
            for view in self.slots.views(slot).values():
                view.uniform_(-1, 1, generator=generator).mul_((3 / view.shape[1]) ** 0.5)

    def layers(self, tokens: int) -> list[Layer]:
        """Always the same ones."""
        sizes, generator = self.sizes, torch.Generator().manual_seed(tokens)
        found = []
        for number in range(LAYERS):
            states = torch.randn(tokens, sizes.hidden, generator=generator).to(self.device, self._dtype)
            weights, experts = torch.rand(tokens, sizes.experts, generator=generator).topk(sizes.top_k)
            ids, counts = experts.unique(return_counts=True)
            of = dict(zip(ids.tolist(), counts.tolist(), strict=True))
            first = number % sizes.copies * sizes.experts
            found.append(Layer(states, experts.to(self.device), weights.to(self.device), of, first))
        return found

    def plain(self, layer: Layer) -> torch.Tensor:
        """The layer by torch's operations."""
        return self._run(ExpertRows(self.slots, self.module, *layer[:4]), layer).combined()

    def grouped(self, layer: Layer, tiling: Any = None) -> torch.Tensor:
        """The layer by the kernels."""
        return self._run(self.rows(layer, tiling), layer).combined()

    def rows(self, layer: Layer, tiling: Any = None) -> Any:
        """For the kernels; None: cut up as the engine does it."""
        from engine.moe.triton_grouped import TILING, GroupedRows

        return GroupedRows(self.slots, self.gated, *layer[:4], tiling or TILING)

    def relaunch(self, rows: Any, layer: Layer) -> None:
        """The kernels alone."""
        self._run(rows, layer)

    def _run(self, rows: Any, layer: Layer) -> Any:
        for expert in layer.counts:
            rows.compute(expert, layer.first + expert)
        rows.launch()
        return rows


@torch.inference_mode()
def measure(subject: Subject, tokens: int, device_time: Timer, called_time: Timer) -> dict[str, Any]:
    """All that is told of so many tokens; times are those of one layer."""
    layers = subject.layers(tokens)
    return {
        "tokens": tokens,
        "experts": sum(len(layer.counts) for layer in layers) / LAYERS,
        "difference": max(_difference(subject.grouped(layer), subject.plain(layer)) for layer in layers),
        "kernels": kernels(subject, layers, device_time),
        "layer": _per_layer(device_time, lambda: [subject.grouped(layer) for layer in layers]),
        "layer_plain": _per_layer(device_time, lambda: [subject.plain(layer) for layer in layers]),
        "called": _per_layer(called_time, lambda: [subject.grouped(layer) for layer in layers]),
        "called_plain": _per_layer(called_time, lambda: [subject.plain(layer) for layer in layers]),
    }


@torch.inference_mode()
def kernels(subject: Subject, layers: Sequence[Layer], device_time: Timer, tiling: Any = None) -> dict[str, Any]:
    """The two kernels alone: time per layer, and weights read per second."""
    prepared = [(subject.rows(layer, tiling), layer) for layer in layers]
    found = device_time(lambda: [subject.relaunch(rows, layer) for rows, layer in prepared])
    read = sum(len(layer.counts) for layer in layers) * subject.layout.nbytes
    return {**_scaled(found).to_json(), "gb_per_s": round(read / found.ns, 1)}


def tilings() -> list[Any]:
    """Other ways of cutting the work up, both kernels alike in what a program reads at a time."""
    from engine.moe.triton_grouped import Tiles, Tiling

    return [
        Tiling(Tiles(columns, depth, warps, stages), Tiles(2 * columns, depth, warps, stages))
        for columns, depth, warps, stages in product((16, 32, 64), (128, 256, 512), (4, 8), (3, 4))
        if 2 * columns * depth * (stages - 1) <= ROOM
    ]


def on_device(device: torch.device) -> Timer:
    """Times what the device does, without what the host takes to say so."""

    def reading(work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(PAUSE)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e6

    return lambda work: _readings(reading, work, device)


def as_called(device: torch.device) -> Timer:
    """Times the host until the device is through."""

    def reading(work: Callable[[], object]) -> float:
        start = time.perf_counter_ns()
        work()
        torch.cuda.synchronize(device)
        return float(time.perf_counter_ns() - start)

    return lambda work: _readings(reading, work, device)


def copy_bandwidth(device: torch.device, device_time: Timer) -> float:
    """Bytes per ns that the device reads and writes in a large copy of its own memory."""
    source = torch.ones(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY / device_time(lambda: target.copy_(source)).ns


def _readings(reading: Callable[[Callable[[], object]], float], work: Callable[[], object], device: Any) -> Median:
    for _ in range(3):  # The first compiles, and takes memory.
        work()
    torch.cuda.synchronize(device)
    return Median.of([reading(work) for _ in range(READINGS)])


def _per_layer(timer: Timer, work: Callable[[], object]) -> dict[str, Any]:
    return _scaled(timer(work)).to_json()


def _scaled(found: Median) -> Median:
    return Median(found.ns / LAYERS, found.low / LAYERS, found.high / LAYERS, found.readings)


def _difference(found: torch.Tensor, other: torch.Tensor) -> float:
    """The largest, beside the largest value."""
    return float((found.float() - other.float()).abs().max() / other.float().abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--tilings", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        parser.exit(2, f"kernel_bandwidth: needs a CUDA device, and --device {options.device} is none here\n")
    import triton

    torch.cuda.set_device(device)
    timers = on_device(device), as_called(device)
    copy = copy_bandwidth(device, timers[0])
    document: dict[str, Any] = {
        "what": "weights of experts read per second by the Triton kernels, beside a copy within the device",
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": "bfloat16",
        "copy_gb_per_s": round(copy, 1),
        "models": {},
    }
    print(f"{document['gpu']}: a copy reads and writes {copy:,.0f} GB/s")
    for name in options.model:
        subject = Subject(MODELS[name], device)
        rows = [measure(subject, tokens, *timers) for tokens in options.tokens]
        for row in rows:
            found, plain = row["kernels"], row["layer_plain"]["median_us"]
            found["of_copy"] = round(found["gb_per_s"] / copy, 3)
            print(
                f"{name}, {row['tokens']} tokens, {row['experts']:g} experts: kernels {found['median_us']:,.0f} us, "
                f"{found['gb_per_s']:,.0f} GB/s, {found['of_copy']:.0%} of a copy; layer "
                f"{row['layer']['median_us']:,.0f} us, torch {plain:,.0f} us; differ by {row['difference']:.4f}"
            )
        document["models"][name] = {"sizes": MODELS[name]._asdict(), "measured": rows}
        if options.tilings:
            document["models"][name]["tilings"] = _compare(subject, timers[0], copy)
        del subject
    write_json(RESULT, document, indent=2)


def _compare(subject: Subject, device_time: Timer, copy: float) -> list[dict[str, Any]]:
    """Every tiling's share of a copy, best first; those that a device has no room for are left out."""
    from triton import OutOfResources

    found = []
    for tiling in tilings():
        try:
            shares = [
                round(kernels(subject, subject.layers(tokens), device_time, tiling)["gb_per_s"] / copy, 3)
                for tokens in TILED_TOKENS
            ]
        except OutOfResources:
            continue
        found.append({"gate_up": tiling.gate_up._asdict(), "down": tiling.down._asdict(), "of_copy": shares})
        print(f"  {shares}: {tuple(tiling.gate_up)}, {tuple(tiling.down)}")
    return sorted(found, key=lambda each: -min(each["of_copy"]))


if __name__ == "__main__":
    main()
