"""What a run is asked to be: machine, number format, cache size and draft length, as a user gives them."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType

from spmoe.errors import InputError
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.machine.units import parse_size

MAX_GAMMA = 1024
"""No draft is worth following that far; the limit keeps exact arithmetic with it short."""

GAMMA = 4
"""Drafted tokens per step where nothing else is asked for."""

GAMMA_MAX = 16
"""As many may be drafted by policies that choose the length, where nothing else is asked for."""

DEFAULT_HARDWARE = "rtx-4090"
DEFAULT_BITS = 4.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options that simulator, sweeps, engine and benchmarks have in common; None: not given.

    `hardware` names a profile or is one.  `bits` per weight, a number or its text.  `vram` (a size such as "18GiB", or
    bytes), `cache` (share of all experts) and `slots` (experts, all layers together) exclude each other; without any,
    the machine's whole memory counts, less dense weights, draft, KV cache of the longest request and workspace.
    `gamma` is the number of drafted tokens per step; without it, policies that choose the length draft up to
    `gamma_max` (default 16), the others 4.  `as_model` names a published model with as many layers, experts and top-k,
    whose sizes and times, with those of its draft, replace the trace's.  `cpu_experts=False` keeps the CPU from
    computing experts.
    """

    hardware: str | Hardware = DEFAULT_HARDWARE
    bits: str | float = DEFAULT_BITS
    vram: str | int | None = None
    cache: float | None = None
    slots: int | None = None
    gamma: int | None = None
    gamma_max: int | None = None
    as_model: str | None = None
    cpu_experts: bool = True

    @property
    def room(self) -> str | None:
        """How the size of the cache was asked for, such as "cache 0.5"; None where the machine's memory sets it."""
        given = [f"{name} {value}" for name in ("vram", "cache", "slots") if (value := getattr(self, name)) is not None]
        return ", ".join(given) or None

    def check(self) -> None:
        """Raises InputError for numbers that are wrong whatever the model and the machine, and for options that exclude
        each other."""
        for name, length in (("gamma", self.gamma), ("gamma_max", self.gamma_max)):
            if length is not None:
                check_number(name, length, int)
                if not 0 <= length <= MAX_GAMMA:
                    raise InputError(f"{name}: expected a number of drafted tokens, 0 to {MAX_GAMMA}, got {length}")
        if self.gamma is not None and self.gamma_max is not None:
            raise InputError("expected only one of gamma and gamma_max: a given length leaves nothing to choose")
        if self.slots is not None:
            check_number("slots", self.slots, int)
        if not isinstance(self.cpu_experts, bool):
            raise InputError(f"cpu_experts: expected True or False, got {self.cpu_experts!r}")
        if self.cache is not None:
            check_number("cache", self.cache, int | float)
        if sum(option is not None for option in (self.vram, self.cache, self.slots)) > 1:
            raise InputError("expected only one of vram, cache and slots: each of them sets the size of the cache")

    def machine(self) -> Hardware:
        """The profile that `hardware` names or is; InputError where there is none."""
        return self.hardware if isinstance(self.hardware, Hardware) else load_hardware(self.hardware)

    def memory_bytes(self) -> int | None:
        """`vram` in bytes; InputError where it is no size."""
        if self.vram is None:
            return None
        if isinstance(self.vram, str):
            try:
                return parse_size(self.vram)
            except InputError as error:
                raise InputError(f"vram: {error}") from None
        check_number("vram", self.vram, int)
        return self.vram


def check_number(name: str, value: object, kind: type[int] | UnionType) -> None:
    """InputError unless `value` is a number of that kind, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, kind):
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{name}: expected {expected}, got {value!r}")
