"""Everything that decides what the weights become: sizes, steps, rates.  Knows nothing of PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from spmoe.errors import InputError

BYTES: Final = 256
SPECIAL: Final = ("<s>", "</s>")
"""Tokens that begin and end a file; their ids are 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The sizes of a pair and how it is trained.  Both models have the same sizes, but for the experts.

    `width` is that of one MLP: the draft has one per layer, the target `experts`.  A step reads `batch` windows of
    `context` tokens.  The control is the dense model trained on for `upcycle_steps`, on the same tokens as the target.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    width: int
    experts: int = 8
    top_k: int = 2
    context: int = 256
    vocabulary: int = 1024

    batch: int = 4
    dense_steps: int
    upcycle_steps: int
    warmup: float = 0.02
    """Share of a stage's steps in which the rates rise; in the last `cooldown` of them they fall to nothing."""
    cooldown: float = 0.5
    seed: int = 0
    save_every: int = 100
    """Steps between two saved states."""

    embedding: float = 1.0
    """Standard deviation of fresh embeddings: that of what layers are given, whose norms make it 1."""
    muon_rate: float = 0.02
    muon_decay: float = 0.1
    """Bounds matrices: what is left alone shrinks by rate x decay per step, so no singular value passes 1 / decay."""
    adam_rate: float = 6e-3
    control_gain: float = 0.2
    """What the control's rates are, of those of the dense model, which it goes on from."""

    expert_rate: float = 2e-3
    router_gain: float = 5.0
    """How much faster routers learn than experts."""
    liveliness: float = 2.0
    """Standard deviation of fresh router logits."""
    noise: float = 1.2
    """What experts differ by at first, in standard deviations of the matrix that they are copies of."""
    frozen: float = 0.7
    """Share of the steps in which the target learns only what the draft has not: experts, routers, norms of both."""
    thawed_gain: float = 0.25
    """How fast the rest learns thereafter, of the experts' rate."""
    balance: float = 0.05
    """Weight of the loss that balances experts, of each layer."""
    router_z: float = 1e-3
    """Weight of the loss that keeps router logits small, of each layer."""

    def __post_init__(self) -> None:
        """Raises InputError, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                least = 0 if field.name == "seed" else 1
                _require(type(value) is int and value >= least, field.name, f"a whole number from {least} up", value)
            elif field.type == "float":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                _require(number and 0 <= value < 1e6, field.name, "a number from 0 up", value)
        for name in ("warmup", "cooldown", "frozen"):
            _require(getattr(self, name) <= 1, name, "a share from 0 to 1", getattr(self, name))
        _require(self.hidden % (2 * self.heads) == 0, "hidden", f"a multiple of {2 * self.heads}", self.hidden)
        _require(self.heads % self.kv_heads == 0, "kv_heads", f"a divisor of {self.heads}", self.kv_heads)
        _require(self.top_k <= self.experts, "top_k", f"at most {self.experts}", self.top_k)
        _require(self.experts < self.hidden, "experts", f"fewer than {self.hidden}", self.experts)
        least = BYTES + len(SPECIAL)
        _require(least <= self.vocabulary < 2**15, "vocabulary", f"{least} to {2**15 - 1} tokens", self.vocabulary)

    @property
    def step_tokens(self) -> int:
        """Tokens that a step learns from."""
        return self.batch * self.context

    def seed_of(self, purpose: str) -> int:
        """A seed for one purpose, so that none sees the draws of another."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:7], "big")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], source: str) -> Recipe:
        """The recipe in a document; InputError, naming `source`, for fields that are unknown, missing or wrong."""
        names = {field.name for field in fields(cls)}
        for name in sorted(names ^ document.keys()):
            raise InputError(f"{source}: field {name}: {'missing' if name in names else 'unknown'}")
        try:
            return cls(**document)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def _require(fine: bool, name: str, expected: str, got: object) -> None:
    if not fine:
        raise InputError(f"field {name}: expected {expected}, got {got!r}")


PICO: Final = Recipe(
    name="pico", layers=8, hidden=128, heads=4, kv_heads=2, width=256, dense_steps=5000, upcycle_steps=3000
)
"""The bundled pair."""

PICO_32L: Final = Recipe(
    name="pico-32l", layers=32, hidden=64, heads=2, kv_heads=1, width=160, dense_steps=3000, upcycle_steps=1800
)
"""As many layers and experts as Mixtral 8x7B: for a trace of that geometry."""

MICRO: Final = Recipe(
    name="micro",
    layers=2,
    hidden=32,
    heads=2,
    kv_heads=1,
    width=32,
    experts=4,
    context=32,
    vocabulary=300,
    dense_steps=12,
    upcycle_steps=10,
    save_every=4,
)
"""Seconds, for tests: it learns next to nothing."""

RECIPES: Final[Mapping[str, Recipe]] = {recipe.name: recipe for recipe in (PICO, PICO_32L, MICRO)}
