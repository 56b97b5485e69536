"""The header line of a trace as JSON, both ways."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from spmoe.errors import InputError
from spmoe.trace.schema import FORMAT, VERSION, DraftShape, ForecastOrigin, Header, ModelShape, Source

_TOP = ("format", "version", "tokens", "model", "draft", "source", "forecasts", "empty_cells")
_TOP_OPTIONAL = ("context",)
_MODEL = ("name", "layers", "experts", "top_k", "expert_params", "dense_params", "kv_bytes_per_token")
_DRAFT = ("name", "params", "active_params", "kv_bytes_per_token")
_SOURCE = ("kind", "what", "when", "how")
_SOURCE_OPTIONAL = ("agreement", "seed")


def check_keys(
    value: object, required: Collection[str], optional: Collection[str] = (), where: str = ""
) -> dict[str, Any]:
    """`value` if it is a JSON object with all required keys and no others than the optional; else InputError."""
    if not isinstance(value, dict):
        at = f"field {where.rstrip('.')}: " if where else ""
        raise InputError(f"{at}expected a JSON object, got {type(value).__name__}")
    for key in required:
        if key not in value:
            raise InputError(f"field {where}{key}: missing; expected {', '.join(required)}")
    for key in value:
        if key not in required and key not in optional:
            raise InputError(f"field {where}{key}: unknown; expected one of {', '.join((*required, *optional))}")
    return value


def parse_header(value: object) -> Header:
    """The header that the decoded JSON `value` says; InputError naming the field where it is not one."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise InputError(f'field format: expected the header line of a trace, "{FORMAT}", got {_short(found)}')
    version = value.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"field version: expected {VERSION}, got {_short(version)}")
    top = check_keys(value, _TOP, _TOP_OPTIONAL)
    forecasts = top["forecasts"]
    if not isinstance(forecasts, dict):
        raise InputError(f"field forecasts: expected a JSON object, got {_short(forecasts)}")
    return Header(
        model=ModelShape(**check_keys(top["model"], _MODEL, (), "model.")),
        draft=None if top["draft"] is None else DraftShape(**check_keys(top["draft"], _DRAFT, (), "draft.")),
        source=Source(**check_keys(top["source"], _SOURCE, _SOURCE_OPTIONAL, "source.")),
        tokens=top["tokens"],
        forecasts={
            name: ForecastOrigin(**check_keys(origin, ("kind",), ("accuracy",), f"forecasts.{name}."))
            for name, origin in forecasts.items()
        },
        empty_cells=top["empty_cells"],
        context=top.get("context"),
    )


def header_text(header: Header) -> str:
    """The header line, without line end: compact, keys in the order of the format, what is None left out."""
    value = {
        "format": FORMAT,
        "version": VERSION,
        "tokens": header.tokens,
        "model": _fields(header.model, _MODEL),
        "draft": None if header.draft is None else _fields(header.draft, _DRAFT),
        "source": _fields(header.source, _SOURCE + _SOURCE_OPTIONAL),
        "forecasts": {name: _fields(origin, ("kind", "accuracy")) for name, origin in header.forecasts.items()},
        "empty_cells": header.empty_cells,
        **_fields(header, _TOP_OPTIONAL),
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _fields(part: object, names: tuple[str, ...]) -> Mapping[str, Any]:
    values = {name: getattr(part, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
