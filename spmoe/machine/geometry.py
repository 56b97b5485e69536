"""Model geometries: how many experts, how large, and the draft model that usually goes with them.

The figures are data (`geometries.json`), each with its source; a model not listed there can be described by building a
`Geometry` directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits, weight_bytes
from spmoe.machine.fields import Fields, read_fields

_FILE: Final = Path(__file__).with_name("geometries.json")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Geometry:
    """A Mixture-of-Experts model as the policies see it.

    `layers` counts the MoE layers, `top_k` the routed experts per token and layer, `expert_params` the parameters of
    one routed expert.  `dense_params` is everything else: attention, embeddings, output head, shared experts, dense
    layers, routers, norms.  `kv_bytes_per_token` is a 16-bit cache over all layers.  `draft` names its usual draft
    model.  Raises InputError when a count is not positive or top_k exceeds the experts.
    """

    name: str
    layers: int
    experts: int
    top_k: int
    expert_params: int
    dense_params: int
    hidden: int
    kv_bytes_per_token: int
    draft: str | None
    source: str

    def __post_init__(self) -> None:
        for field in ("layers", "experts", "top_k", "expert_params", "dense_params", "hidden", "kv_bytes_per_token"):
            if getattr(self, field) < 1:
                raise InputError(f"model {self.name}: field {field}: expected at least 1, got {getattr(self, field)}")
        if self.top_k > self.experts:
            raise InputError(f"model {self.name}: field top_k: expected at most {self.experts}, got {self.top_k}")

    @property
    def keys(self) -> int:
        """All (layer, expert) pairs."""
        return self.layers * self.experts

    @property
    def router_params(self) -> int:
        """Parameters of one layer's router, which are part of `dense_params`."""
        return self.hidden * self.experts

    def expert_bytes(self, bits: float) -> int:
        """Bytes of one routed expert, rounded up."""
        return weight_bytes(self.expert_params, bits)

    def dense_bytes(self, bits: float) -> int:
        """Bytes of everything that is not a routed expert, rounded up."""
        return weight_bytes(self.dense_params, bits)


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A draft model.  `active_params` are those one token reads: a mixture's chosen experts only, and no input
    embedding unless it is also the output head.  `max_bits` is the widest form it is published in, None if 16.
    """

    name: str
    params: int
    active_params: int
    layers: int
    kv_bytes_per_token: int
    max_bits: float | None
    source: str

    def width(self, bits: float) -> float:
        """Bits per weight in a run at `bits`: those, or `max_bits` if the draft is only published narrower."""
        return bits if self.max_bits is None else min(bits, self.max_bits)

    def bytes(self, bits: float) -> int:
        """Bytes of all its weights in a run at `bits`, rounded up."""
        return weight_bytes(self.params, self.width(bits))


class _Catalogue(NamedTuple):
    models: Mapping[str, Geometry]
    drafts: Mapping[str, DraftModel]


def geometry(name: str) -> Geometry:
    """The published model called `name` (lower case, such as "mixtral-8x7b"); InputError listing the known names."""
    return _find("model", name, _catalogue().models)


def geometry_names() -> tuple[str, ...]:
    return tuple(_catalogue().models)


def draft_model(name: str) -> DraftModel:
    """The draft model called `name`; InputError listing the known names."""
    return _find("draft", name, _catalogue().drafts)


def draft_names() -> tuple[str, ...]:
    return tuple(_catalogue().drafts)


def _find(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise InputError(f"{kind} {name!r} is unknown; expected one of {', '.join(known)}")
    return known[name]


@cache
def _catalogue() -> _Catalogue:
    return read_catalogue(_FILE)


def read_catalogue(path: Path) -> _Catalogue:
    """All models and drafts of the file `path`; InputError names file and field."""
    root = read_fields(path, path.name)
    models, drafts = root.section("models"), root.section("drafts")
    root.done()
    known_drafts = {name: _draft(name, drafts.section(name)) for name in drafts}
    known_models = {name: _model(name, models.section(name), tuple(known_drafts)) for name in models}
    return _Catalogue(MappingProxyType(known_models), MappingProxyType(known_drafts))


def _model(name: str, fields: Fields, drafts: tuple[str, ...]) -> Geometry:
    model = Geometry(
        name=name,
        layers=fields.whole("layers"),
        experts=fields.whole("experts"),
        top_k=fields.whole("top_k"),
        expert_params=fields.whole("expert_params"),
        dense_params=fields.whole("dense_params"),
        hidden=fields.whole("hidden"),
        kv_bytes_per_token=fields.whole("kv_bytes_per_token"),
        draft=None if fields.is_null("draft") else fields.text("draft", drafts),
        source=fields.text("source"),
    )
    fields.done()
    return model


def _draft(name: str, fields: Fields) -> DraftModel:
    draft = DraftModel(
        name=name,
        params=fields.whole("params"),
        active_params=fields.whole("active_params"),
        layers=fields.whole("layers"),
        kv_bytes_per_token=fields.whole("kv_bytes_per_token"),
        max_bits=None if fields.is_null("max_bits") else fields.one_of("max_bits", parse_bits),
        source=fields.text("source"),
    )
    fields.done()
    return draft
