"""A grid of cells: every combination of traces, machines, widths, cache sizes, gammas, policies and cutoffs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sim.sweeps.cell import SCHEMA, Cell, Cutoff, Place, code_digest, digest, hardware_digest, identity
from sim.sweeps.table import Row, flat
from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.hardware import Hardware, load_hardware
from spmoe.policy.registry import RECIPES, select
from spmoe.run.applicability import none_applies, obstacle_of_output
from spmoe.run.options import DEFAULT_BITS, DEFAULT_HARDWARE, GAMMA, RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import Header
from spmoe.trace.summary import summarise


def grid(
    traces: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    policies: str | Sequence[str] = "all",
    hardware: str | Hardware | Sequence[str | Hardware] = DEFAULT_HARDWARE,
    *,
    bits: str | float | Sequence[str | float] = DEFAULT_BITS,
    vram: str | int | Sequence[str | int] | None = None,
    cache: float | Sequence[float] | None = None,
    slots: int | Sequence[int] | None = None,
    gamma: int | Sequence[int] = GAMMA,
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
        Place(
            path,
            source.digest,
            RunOptions(hardware=machine, bits=width, gamma=length, cpu_experts=cpu_experts, **room),
        )
        for path, source in sources.items()
        for machine in dict.fromkeys(machines)
        for width in dict.fromkeys(map(parse_bits, _axis("bits", bits)))
        for room in _rooms(vram=vram, cache=cache, slots=slots)
        for length in _axis("gamma", gamma)
    ]
    settings = [_resolve(place, sources[place.trace]) for place in places]
    _check_axis([place.trace for place in places], settings)
    for axis in ("hardware", "bits", "room", "gamma"):
        _check_axis([getattr(place.options, axis) for place in places], settings)
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
    """Those that have cells; InputError where none has."""
    obstacles = {one.name: obstacle_of_output(one, lossy) for one in select(policies)}
    chosen = [name for name, why in obstacles.items() if why is None]
    if not chosen:
        raise none_applies({name: why for name, why in obstacles.items() if why is not None})
    return chosen


def _rooms(**options: Any) -> list[dict[str, Any]]:
    """The cache sizes asked for, as options; none where it is the machine's memory that sets it."""
    given = {name: _axis(name, values) for name, values in options.items() if values is not None}
    if len(given) > 1:
        raise InputError("expected only one of vram, cache and slots: each of them sets the size of the cache")
    return [{name: value} for name, values in given.items() for value in values] or [{}]


def _resolve(place: Place, source: _Source) -> Setting | InputError:
    try:
        return resolve_setting(source.header, source.longest_request, place.options)
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
    options, machine = place.options, place.options.machine()
    if isinstance(setting, Setting):
        resolved = {**flat(setting.to_json()), "feasible": setting.feasible}
    else:
        resolved = {
            "model": source.header.model.name,
            "hardware": machine.name,
            "hardware_kind": machine.kind,
            "bits": options.bits,
            "gamma": options.gamma,
            "cpu_experts": options.cpu_experts and machine.cpu is not None,
        }
    return {
        "trace": place.trace.name,
        "source": source.header.source.kind,
        **resolved,
        "room": options.room,
        "policy": policy,
        "cutoff_asked": asked,
        "trace_digest": place.digest,
        "hardware_digest": hardware_digest(machine),
        "schema": SCHEMA,
        "code": code_digest(),
    }
