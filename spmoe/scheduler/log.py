"""The decision log: every event and command of a run, as JSON lines, enough to repeat the run's decisions.

The first line holds the scheduler's configuration, the last one the number of lines between: a log without it was cut
off and is refused.  Expert keys are written as pairs [layer, expert].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from spmoe.errors import InputError
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.pace import Pace
from spmoe.policy.recipe import Recipe
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.legal_order import IllegalEvent
from spmoe.scheduler.loads import TransferFailed
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state import events as event_types
from spmoe.state.commands import Command, Submit
from spmoe.state.events import Computed, DraftPredicted, Event, GatePredicted, HostComputed, LayerReached, RequestBegun
from spmoe.state.keys import expert_key, layer_and_expert

FORMAT = "spmoe-log"
VERSION = 1

_EVENTS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in event_types.Event.__args__}


class LogWriter:
    """Observes a run and writes its log to a text stream; `close` writes the last line."""

    def __init__(self, stream: IO[str], config: SchedulerConfig) -> None:
        self._stream = stream
        self._experts = config.experts
        self._lines = 0
        header = {"log": FORMAT, "version": VERSION, "scheduler": {**asdict(config), "pace": config.pace._asdict()}}
        stream.write(_json(header))

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        """Write an event and what the scheduler answered."""
        for text in lines_of(event, commands, self._experts):
            self._stream.write(text)
            self._lines += 1

    def close(self) -> None:
        """Write the line that a log without is cut off."""
        self._stream.write(_json({"end": self._lines}))


def lines_of(event: Event, commands: tuple[Command, ...], experts: int) -> list[str]:
    """The log lines of one event: its own, then one for each command."""
    fields = event._asdict()
    if isinstance(event, RequestBegun):
        fields["popular"] = [layer_and_expert(key, experts) for key in event.popular]
    lines = [_json({"event": type(event).__name__, **fields})]
    for command in commands:
        fields = command._asdict()
        if isinstance(command, Submit):
            fields["loads"] = [
                {
                    "key": layer_and_expert(load.key, experts),
                    "slot": load.slot,
                    "evicted": None if load.evicted is None else layer_and_expert(load.evicted, experts),
                }
                for load in command.loads
            ]
        lines.append(_json({"command": type(command).__name__, **fields}))
    return lines


class Verified(NamedTuple):
    """What a log that holds was found to be."""

    recipe: str
    events: int
    lines: int


def read_config(path: str | Path) -> SchedulerConfig:
    """What the scheduler of a logged run was set up with.  Raises InputError where that cannot be read."""
    with _open(path) as stream, _at(path, 1):
        return _read_config(stream.readline())


def verify_log(
    path: str | Path,
    future: Callable[[SchedulerConfig], Future] | None = None,
    observers: Sequence[Callable[[Event, tuple[Command, ...]], None]] = (),
    recipe: Recipe | None = None,
) -> Verified:
    """Feed the events of a log to a fresh scheduler and compare its commands with those logged, byte for byte.

    `future` is for recipes that need it, for a log does not hold it.  `observers` see every event with its
    answer, as those of a run do; what they saw holds only where nothing is raised.  `recipe` is the one that the log
    names, where the registry does not have it.  Raises InputError, naming file and
    line, where the log is damaged or cut off, or where the commands differ.
    """
    count = events = 0
    with _open(path) as stream:
        numbered = enumerate(stream, start=1)
        number, first = next(numbered, (1, ""))
        with _at(path, number):
            config = _read_config(first)
            scheduler = Scheduler(config, None if future is None else future(config), recipe)
        expected: Iterator[str] = iter(())
        for number, line in numbered:
            with _at(path, number):
                entry = _object(line)
            if "end" in entry:
                if next(expected, None) is not None:
                    raise InputError(f"{path}:{number}: a command is missing at the end of the log")
                if entry["end"] != count:
                    raise InputError(
                        f"{path}:{number}: field end: expected {count}, the lines there are, got {entry['end']}"
                    )
                rest = next(numbered, None)
                if rest is not None:
                    raise InputError(f"{path}:{rest[0]}: expected nothing after the end line")
                return Verified(scheduler.recipe.name, events, count)
            count += 1
            if "event" in entry:
                missing = next(expected, None)
                if missing is not None:
                    raise InputError(f"{path}:{number}: expected the command {missing.strip()}")
                events += 1
                with _at(path, number):
                    event = _read_event(entry, scheduler.config.experts)
                    commands = scheduler.handle(event)
                    for observe in observers:
                        observe(event, commands)
                expected = iter(lines_of(event, commands, scheduler.config.experts)[1:])
            elif line != (wanted := next(expected, "no command")):
                raise InputError(f"{path}:{number}: a fresh scheduler says {wanted.strip()}, the log {line.strip()}")
    raise InputError(f"{path}: expected an end line; the log was cut off after {count} lines")


def _open(path: str | Path) -> IO[str]:
    try:
        return open(path, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _object(line: str) -> dict[str, Any]:
    value = json.loads(line, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {name}")


def _read_config(line: str) -> SchedulerConfig:
    header = _object(line) if line else {}
    if header.get("log") != FORMAT or header.get("version") != VERSION:
        raise ValueError(f"expected the header of a {FORMAT}, version {VERSION}")
    fields = dict(header["scheduler"])
    return SchedulerConfig(**{**fields, "pace": Pace(**fields["pace"])})


def _read_event(entry: dict[str, Any], experts: int) -> Event:
    name = entry.pop("event")
    if name not in _EVENTS:
        raise ValueError(f"field event: unknown event {name!r}")
    if name == "RequestBegun":
        entry["popular"] = [expert_key(layer, expert, experts) for layer, expert in entry["popular"]]
    event: Event = _EVENTS[name](**{field: _tuples(value) for field, value in entry.items()})
    for field in ("time", "started", "ended"):
        if type(time := getattr(event, field, 0)) is not int:
            raise ValueError(f"field {field}: expected whole nanoseconds, got {time!r}")
    for expert in _named_experts(event):
        if not 0 <= expert < experts:
            raise ValueError(f"expert {expert!r} is out of range 0..{experts - 1}")
    return event


def _named_experts(event: Event) -> Iterator[int]:
    if isinstance(event, LayerReached | Computed):
        yield from event.experts
    elif isinstance(event, HostComputed):
        yield event.expert
    if isinstance(event, DraftPredicted | GatePredicted):
        yield from (expert for forecast in event.forecasts for expert, _ in forecast)
    elif isinstance(event, LayerReached):
        yield from (expert for gate in event.gates for expert, _ in gate)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@contextmanager
def _at(path: str | Path, number: int) -> Iterator[None]:
    """Whatever is wrong with a line is reported with its place."""
    try:
        yield
    except (IllegalEvent, LookupError, RecursionError, TransferFailed, TypeError, ValueError) as error:
        raise InputError(f"{path}:{number}: {error}") from None
