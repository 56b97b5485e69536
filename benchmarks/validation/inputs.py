"""What the checks run on: the committed settings, published speeds, and the real routing with draws."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from spmoe.errors import InputError
from spmoe.machine.geometry import draft_model, geometry
from spmoe.machine.hardware import Draft, Gpu, Hardware, load_hardware
from spmoe.machine.units import GIB
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.synthetic import draft_shape, model_shape

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = json.loads(Path(__file__).with_name("config.json").read_text(encoding="utf-8"))
SPEEDS = "published-offload-speeds.csv"


def real_trace(data: Path, agreement: float | None = None, seed: int | None = None) -> TraceInMemory:
    """The real routing as a trace, with agreement and forecasts drawn at the rates of the settings, or as given.

    Raises InputError where the file is missing or wrong.
    """
    config = CONFIG["routing"]
    model = geometry(config["model"])
    assert model.draft is not None
    rates = Rates(
        config["agreement"] if agreement is None else agreement,
        config["draft_accuracy"],
        config["next_gate_accuracy"],
    )
    header, lines = import_trace(
        data / config["file"],
        "vllm-jsonl",
        model_shape(model),
        draft_shape(draft_model(model.draft)),
        rates,
        config["seed"] if seed is None else seed,
    )
    return TraceInMemory(header, lines)


def published_speeds(data: Path) -> list[dict[str, str]]:
    """The rows of the file of published speeds.  Raises InputError where it cannot be read."""
    path = data / SPEEDS
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def machine(
    name: str,
    figures: dict[str, Any],
    *,
    link_gb_per_s: float = 24,
    layer_overhead_us: float = 100,
    expert_overhead_us: float = 20,
    draft_token_us: float | None = None,
) -> Hardware:
    """A machine from the figures of the settings; what they leave out is as in the rtx-4090 profile."""
    base = load_hardware("rtx-4090")
    token_ns = base.draft.token_ns if draft_token_us is None else max(1, round(draft_token_us * 1e3))
    return Hardware(
        name=name,
        kind="datasheet",
        source="benchmarks/validation/config.json",
        link=type(base.link)(max(1, round(link_gb_per_s * 1e9)), base.link.latency_ns, base.link.copy_ns),
        gpu=Gpu(
            memory_bytes=round(figures["memory_gib"] * GIB),
            bandwidth=round(figures["bandwidth_gb_per_s"] * 1e9),
            flops=round(figures["tflops"] * 1e12),
            layer_overhead_ns=max(1, round(layer_overhead_us * 1e3)),
            expert_overhead_ns=max(1, round(expert_overhead_us * 1e3)),
        ),
        draft=Draft(token_ns, base.draft.params, base.draft.layers, base.draft.bits),
        cpu=None,
    )


def digests(data: Path) -> dict[str, str]:
    """What the results were made from: SHA-256 of the files in `data`.  Raises InputError where one cannot be read."""
    found = {}
    for name in (CONFIG["routing"]["file"], SPEEDS):
        try:
            found[name] = hashlib.sha256((data / name).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{data / name}: cannot be read: {error.strerror}") from None
    return found
