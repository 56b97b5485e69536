"""A small model and a two-request trace of it, in types and as the JSON lines of a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spmoe.trace.schema import DraftShape, ForecastOrigin, Header, ModelShape, Source

MODEL = ModelShape("tiny", layers=2, experts=4, top_k=2, expert_params=10, dense_params=5, kv_bytes_per_token=8)
DRAFT = DraftShape("tiny-draft", params=6, active_params=4, kv_bytes_per_token=2)


def make_header(tokens: int, **changes: Any) -> Header:
    values: dict[str, Any] = {
        "model": MODEL,
        "draft": DRAFT,
        "source": Source("synthetic", "a test", "", "by hand", agreement=0.9, seed=3),
        "tokens": tokens,
        "forecasts": {"draft": ForecastOrigin("drawn", 0.8), "next_gate": ForecastOrigin("recorded")},
    }
    return Header(**(values | changes))


def header_json(tokens: int = 3) -> dict[str, Any]:
    return {
        "format": "spmoe-trace",
        "version": 1,
        "tokens": tokens,
        "model": {
            "name": "tiny",
            "layers": 2,
            "experts": 4,
            "top_k": 2,
            "expert_params": 10,
            "dense_params": 5,
            "kv_bytes_per_token": 8,
        },
        "draft": {"name": "tiny-draft", "params": 6, "active_params": 4, "kv_bytes_per_token": 2},
        "source": {"kind": "synthetic", "what": "a test", "when": "", "how": "by hand", "agreement": 0.9, "seed": 3},
        "forecasts": {"draft": {"kind": "drawn", "accuracy": 0.8}, "next_gate": {"kind": "recorded"}},
        "empty_cells": 0,
    }


def lines_json() -> list[dict[str, Any]]:
    """A prefill line, two tokens of request 0 and one of request 1."""
    rejected = {
        "routed": [[3], [1, 2]],
        "forecasts": {"draft": [[[3, 0.5]], []]},
        "draft_prob": 0.25,
        "weights": [[0.5], [0.75, 0.25]],
    }
    return [
        {"request": 0, "prefill": {"tokens": 7, "touched": [[0, 1], [2]]}},
        {
            "request": 0,
            "position": 0,
            "routed": [[0, 1], [3, 2]],
            "agree": True,
            "draft_prob": 1,
            "weights": [[0.75, 0.25], [0.5, 0.5]],
            "forecasts": {"draft": [[[1, 0.5], [0, 0.25]], []], "next_gate": [[], [[3, 1.0]]]},
        },
        {"request": 0, "position": 1, "routed": [[0, 1], [3, 2]], "agree": False, "rejected": [rejected]},
        {"request": 1, "position": 5, "routed": [[2, 0], [1, 0]], "agree": True, "gate_probs": [[0.25] * 4, []]},
    ]


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes JSON values (or raw text) as the lines of a file and gives its path."""

    def write(*values: Any, name: str = "t.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
        return path

    return write
