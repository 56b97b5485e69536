"""The pair of models that `profile` and `measure` time, with random weights, and the link to it."""

from __future__ import annotations

import argparse
from typing import Final

import torch

from engine.device import resolve_device, resolve_dtype
from engine.options import Options
from engine.profiling.random_models import BlankPair
from spmoe.errors import InputError
from spmoe.machine.geometry import geometry, geometry_names

LATENCY_NS: Final = 12_000
"""Of a link that is slowed down: as that of profiles/rtx-4090.json."""

TOO_LARGE: Final = "give fewer slots, or another --model, --draft or --host-memory"
"""What to do where memory runs out."""


def named_pair(options: argparse.Namespace, model: str, draft: str | None) -> tuple[BlankPair, torch.device]:
    """The models named, as their configurations say, and where they will be."""
    known = Options(device=options.device, dtype=options.dtype, link_gbps=options.link_gbps)
    device = resolve_device(known)
    known.resolve_hardware()  # Refuses speeds that no link has.
    if draft is None:
        draft = _usual_draft(model)
    return BlankPair.read(model, draft, resolve_dtype(known, device)), device


def _usual_draft(model: str) -> str:
    """The draft that goes with a model of this name; InputError where none is known."""
    if model.endswith("target"):  # A pair's.
        return model.removesuffix("target") + "draft"
    usual = geometry(model).draft if model in geometry_names() else None
    if usual is None:
        raise InputError(f"model {model}: no draft is known that goes with it; expected --draft NAME or FOLDER")
    return usual


def host_memory(options: argparse.Namespace) -> int | None:
    """Bytes of host memory to stay within; None: what is available."""
    return Options(host_memory=options.host_memory).resolve_host_memory()


def describe_link(options: argparse.Namespace) -> str:
    """What a profile says of a link that is slowed down; empty where it is not."""
    return "" if options.link_gbps is None else f"; copies slowed down to {options.link_gbps:g} GB/s"
