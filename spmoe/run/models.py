"""Which model and draft a trace's header speaks of: published ones where it names one, else what it says itself."""

from __future__ import annotations

from collections.abc import Sequence

from spmoe.errors import InputError
from spmoe.machine.geometry import DraftModel, Geometry, draft_model, draft_names, geometry, geometry_names
from spmoe.trace.schema import DraftShape, ModelShape


def target_geometry(shape: ModelShape) -> Geometry:
    """The published geometry where the trace names one, else what the trace says of itself."""
    if shape.name not in geometry_names():
        return Geometry(
            name=shape.name,
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            expert_params=shape.expert_params,
            dense_params=max(1, shape.dense_params),
            hidden=1,  # A trace does not tell: its router counts with the dense weights.
            kv_bytes_per_token=max(1, shape.kv_bytes_per_token),
            draft=None,
            source="the trace's header",
        )
    known = geometry(shape.name)
    fields = ("layers", "experts", "top_k", "expert_params", "dense_params", "kv_bytes_per_token")
    _check_same("model", known, shape, fields)
    return known


def stand_in_geometry(name: str, shape: ModelShape) -> Geometry:
    """The published model of that name; InputError where its layers, experts or top-k are not those of `shape`."""
    known = geometry(name)
    if (known.layers, known.experts, known.top_k) != (shape.layers, shape.experts, shape.top_k):
        raise InputError(
            f"as_model: expected a model of {shape.layers} MoE layers of {shape.experts} experts, top-{shape.top_k}, "
            f"as {shape.name} has; {name} has {known.layers} of {known.experts}, top-{known.top_k}"
        )
    return known


def draft_of(shape: DraftShape | None, model: Geometry) -> DraftModel | None:
    """The draft model that the trace names, else the usual one of `model`; None where it has none."""
    if shape is None:
        return draft_model(model.draft) if model.draft else None
    if shape.name in draft_names():
        known = draft_model(shape.name)
        _check_same("draft", known, shape, ("params", "active_params", "kv_bytes_per_token"))
        return known
    return DraftModel(
        name=shape.name,
        params=max(1, shape.params),
        active_params=max(1, shape.active_params),
        layers=model.layers,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        max_bits=None,
        source="the trace's header",
    )


def _check_same(kind: str, known: Geometry | DraftModel, shape: ModelShape | DraftShape, fields: Sequence[str]) -> None:
    """What a trace says of a published model must be what is published of it; a KV size of 0 says nothing."""
    for field in fields:
        said, expected = getattr(shape, field), getattr(known, field)
        if said != expected and not (field == "kv_bytes_per_token" and said == 0):
            raise InputError(
                f"{kind} {shape.name}: field {field}: expected {expected}, the trace says {said}; another {kind} needs "
                "another name"
            )
