"""The cells of a sweep: every combination of traces, machines, widths, cache sizes, gammas, policies and cutoffs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import spmoe
from sim.sweeps.table import Row, Value, flat
from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.machine.bits import parse_bits
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import RECIPES, select
from spmoe.run.setting import Setting, resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import Header
from spmoe.trace.summary import summarise

SCHEMA = "spmoe-sweep/1"
IDENTITY = (
    "trace",
    "trace_digest",
    "hardware",
    "hardware_digest",
    "bits",
    "room",
    "gamma",
    "cpu_experts",
    "policy",
    "cutoff_asked",
    "schema",
    "code",
)
"""The columns that say which cell a row is: what was asked for, and the content of the files that it names.

Rows of other code are not taken over: it may decide otherwise.
"""

Cutoff = int | Literal["best", "all"]


class Room(NamedTuple):
    """How the size of the cache was asked for."""

    option: str  # "cache", "slots" or "vram"
    value: str | float

    def __str__(self) -> str:
        return f"{self.option} {self.value}"


@dataclass(frozen=True, slots=True)
class Place:
    """What the cells of all policies share: a trace, a machine, whether its CPU may compute, a width, a cache size, a
    gamma."""

    trace: Path
    digest: str
    hardware: Hardware
    bits: float
    room: Room | None
    gamma: int
    cpu_experts: bool

    def options(self) -> dict[str, Any]:
        """As `sim.replay` takes them."""
        room = {self.room.option: self.room.value} if self.room else {}
        return {
            "hardware": self.hardware,
            "bits": self.bits,
            "gamma": self.gamma,
            "cpu_experts": self.cpu_experts,
            **room,
        }


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy in one place.

    `cutoff` is that of `sim.replay`.  `columns` is the resolved configuration, the first part of the cell's row.
    `obstacle` says why there is nothing to run, where that is known beforehand.
    """

    place: Place
    policy: str
    cutoff: int | Literal["best"] | None
    columns: Row
    obstacle: str | None


def identity(row: Row) -> tuple[str, ...]:
    """Which cell a row is, the same for what was just resolved and for what was read back from a file."""
    return tuple(_plain(row.get(name)) for name in IDENTITY)


def digest(path: str | os.PathLike[str]) -> str:
    """A digest of a file's bytes, as rows carry it.  Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


@cache
def code_digest() -> str:
    """A digest of the code that replays: of this package and the core's, data files included."""
    content = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(spmoe.__file__).parent):
        for path in sorted((*package.rglob("*.py"), *package.rglob("*.json"))):
            content.update(f"{path.relative_to(package.parent).as_posix()}\0".encode() + path.read_bytes())
    return f"sha256:{content.hexdigest()[:16]}"


def grid(
    traces: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    policies: str | Sequence[str] = "all",
    hardware: str | Hardware | Sequence[str | Hardware] = "rtx-4090",
    *,
    bits: str | float | Sequence[str | float] = 4.25,
    vram: str | int | Sequence[str | int] | None = None,
    cache: float | Sequence[float] | None = None,
    slots: int | Sequence[int] | None = None,
    gamma: int | Sequence[int] = 4,
    cutoff: Cutoff | Sequence[Cutoff] | None = None,
    cpu_experts: bool = True,
    lossy: bool = False,
) -> tuple[Cell, ...]:
    """All cells, policies varying faster than gamma, gamma faster than the cache, and so on up to the trace.

    Every argument takes one value or several; the values are those of `sim.replay`.  A cutoff of "all" stands for every
    number of layers; policies without a cutoff layer have one cell, whatever the cutoffs.  "all" policies are those
    that keep the model's output, with `lossy` the others too.  `cpu_experts` is one value.  Reads all traces whole.

    Raises InputError for a value that is wrong wherever it is combined.  Where it is only some combinations that cannot
    be (more slots than one of the models has experts), these cells carry the reason as their `obstacle`.
    """
    names = _policies(policies, lossy)
    sources = {Path(path): _Source.read(Path(path)) for path in _axis("traces", traces)}
    machines = [one if isinstance(one, Hardware) else load_hardware(one) for one in _axis("hardware", hardware)]
    places = [
        Place(path, source.digest, machine, width, room, depth, cpu_experts)
        for path, source in sources.items()
        for machine in dict.fromkeys(machines)
        for width in dict.fromkeys(map(parse_bits, _axis("bits", bits)))
        for room in _rooms(vram=vram, cache=cache, slots=slots)
        for depth in _axis("gamma", gamma)
    ]
    settings = [_resolve(place, sources[place.trace]) for place in places]
    for axis in ("trace", "hardware", "bits", "room", "gamma"):
        _check_axis([getattr(place, axis) for place in places], settings)
    choices = None if cutoff is None else _axis("cutoff", cutoff)
    _check_cutoffs(choices or [], max(source.header.model.layers for source in sources.values()))
    cells = [
        cell
        for place, setting in zip(places, settings, strict=True)
        for name in names
        for cell in _cells(place, setting, name, choices, sources[place.trace])
    ]
    return tuple({identity(cell.columns): cell for cell in cells}.values())


class _Source(NamedTuple):
    """What has to be known of a trace before it is replayed."""

    header: Header
    longest_request: int
    digest: str

    @classmethod
    def read(cls, path: Path) -> _Source:
        trace = TraceFile(path)
        return cls(trace.header, summarise(trace).longest_request, digest(path))


def _axis(name: str, values: object) -> list[Any]:
    """The different values that an argument stands for, in order."""
    several = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    found = list({repr(value): value for value in several}.values())
    if not found:
        raise InputError(f"{name}: expected at least one")
    return found


def _policies(policies: str | Sequence[str], lossy: bool) -> list[str]:
    named = [policies] if isinstance(policies, str) else policies
    chosen = []
    for one in select(policies):
        if one.lossless or lossy:
            chosen.append(one.name)
        elif one.name in named:
            raise InputError(f"policy {one.name}: changes the model's output; --lossy (lossy=True) allows it")
    if not chosen:
        raise InputError(
            f"policies: all that are called like {named[0]!r} change the model's output; --lossy allows them"
        )
    return chosen


def _rooms(**options: Any) -> list[Room] | list[None]:
    """The cache sizes asked for; None alone where it is the machine's memory that sets it."""
    given = {name: _axis(name, values) for name, values in options.items() if values is not None}
    if len(given) > 1:
        raise InputError("expected only one of vram, cache and slots: each of them sets the size of the cache")
    return [Room(name, value) for name, values in given.items() for value in values] or [None]


def _resolve(place: Place, source: _Source) -> Setting | InputError:
    try:
        return resolve_setting(source.header, source.longest_request, **place.options())
    except InputError as error:
        return error


def _check_axis(values: Sequence[object], settings: Sequence[Setting | InputError]) -> None:
    """Raises what is wrong with a value that nothing can be combined with."""
    outcomes: dict[str, list[Setting | InputError]] = {}
    for value, setting in zip(values, settings, strict=True):
        outcomes.setdefault(repr(value), []).append(setting)
    for found in outcomes.values():
        errors = [one for one in found if isinstance(one, InputError)]
        if len(errors) == len(found):
            raise errors[0]


def _check_cutoffs(cutoffs: Iterable[object], layers: int) -> None:
    for one in cutoffs:
        wrong = isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= layers
        if wrong and one not in ("best", "all"):
            raise InputError(f"cutoff: expected a number of layers within 0..{layers}, best or all, got {one!r}")


def _cells(
    place: Place, setting: Setting | InputError, policy: str, cutoffs: Sequence[Cutoff] | None, source: _Source
) -> Iterator[Cell]:
    layers = source.header.model.layers
    for cutoff, asked in _cutoffs(policy, cutoffs, layers):
        obstacle = str(setting) if isinstance(setting, InputError) else None
        if obstacle is None and isinstance(cutoff, int) and cutoff > layers:
            obstacle = f"a cutoff of {cutoff} layers is more than the {layers} that there are"
        yield Cell(place, policy, cutoff, _columns(place, setting, policy, asked, source), obstacle)


def _cutoffs(
    policy: str, cutoffs: Sequence[Cutoff] | None, layers: int
) -> Iterator[tuple[int | Literal["best"] | None, str | None]]:
    """The cutoffs to run a policy with, and what the rows call them."""
    if not RECIPES[policy].has_cutoff:
        yield None, None
        return
    if cutoffs is None:
        yield None, "analytical"
        return
    for one in cutoffs:
        for cutoff in range(layers + 1) if one == "all" else [one]:
            yield cutoff, str(cutoff)


def _columns(place: Place, setting: Setting | InputError, policy: str, asked: str | None, source: _Source) -> Row:
    if isinstance(setting, Setting):
        resolved = {**flat(setting.to_json()), "feasible": setting.feasible}
    else:
        resolved = {
            "model": source.header.model.name,
            "hardware": place.hardware.name,
            "hardware_kind": place.hardware.kind,
            "bits": place.bits,
            "gamma": place.gamma,
            "cpu_experts": place.cpu_experts and place.hardware.cpu is not None,
        }
    return {
        "trace": place.trace.name,
        "source": source.header.source.kind,
        **resolved,
        "room": str(place.room) if place.room else None,
        "policy": policy,
        "cutoff_asked": asked,
        "trace_digest": place.digest,
        "hardware_digest": _digest_of(place.hardware),
        "schema": SCHEMA,
        "code": code_digest(),
    }


def _digest_of(hardware: Hardware) -> str:
    """Two profiles may have the same name."""
    content = json.dumps(asdict(hardware), sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _plain(value: Value) -> str:
    """16 and 16.0 are the same width, whichever of them a file holds."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)
