"""What a policy is made of, in words: for the terminal, and for docs/policies.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Final

from spmoe.policy.recipe import Recipe

NEEDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cpu": "the CPU's speed",
        "draft": "draft forecasts",
        "future": "the windows to come",
        "gates": "gate probabilities, where known",
        "hindsight": "how often this very trace uses each expert",
        "next_gate": "next_gate forecasts",
        "popularity": "how often other requests use each expert",
    }
)
"""What `Recipe.needs` stands for."""


def parts(one: Recipe) -> dict[str, str]:
    """The eight parts of a recipe by name, and the gate of one that has it: as in the registry."""
    every: dict[str, object] = {
        "placement": one.placement,
        "predictor": one.predictor,
        "horizon": one.horizon,
        "admission": one.admission,
        "eviction": one.eviction,
        "I/O plan": one.io,
        "miss": one.miss,
        "speculation": one.speculation,
    }
    if one.gate is not None:
        every["gate"] = one.gate
    return {name: _written(part) for name, part in every.items()}


def _written(part: object) -> str:
    """A part as the registry writes it: with the settings that are not its defaults."""
    settings = [
        f"{field.name}={getattr(part, field.name)!r}"
        for field in fields(part)  # type: ignore[arg-type]
        if getattr(part, field.name) != field.default
    ]
    return type(part).__name__ + (f"({', '.join(settings)})" if settings else "")


def runtime(one: Recipe) -> str:
    """How the original uses the machine, where that is not as the native runtime does."""
    return "; ".join(one.runtime.explain()) or "native"


def needs(one: Recipe) -> str:
    """What a trace or machine must offer."""
    return ", ".join(NEEDS[name] for name in sorted(one.needs)) or "nothing"


def standing(one: Recipe) -> str:
    """Whether the output is the model's, and whether the bound holds."""
    output = "lossless" if one.lossless else "lossy (refused without --lossy)"
    if one.lossless and one.fetches_only(cpu=True):
        return f"{output}, fetch-only"
    if one.lossless and "cpu" not in one.needs:
        return f"{output}; fetch-only without a CPU; with one it computes too, so it may get below the bound"
    why = "fewer experts compute" if one.fetches_only(cpu=True) else "the CPU computes too"
    return f"{output}; {why}, so it may get below the bound"


def details(one: Recipe) -> Iterator[tuple[str, str]]:
    """All there is to say of a recipe besides its name: what, and how it stands with that."""
    yield "does", one.summary
    yield "source", one.source
    yield "differs", one.differs or "in nothing known"
    yield from parts(one).items()
    yield "runtime", runtime(one)
    yield "needs", needs(one)
    if one.fallback:
        yield "fallback", one.fallback
    yield "results", standing(one)
