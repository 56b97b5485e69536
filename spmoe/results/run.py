"""A run file: policies timed by the engine on one trace in one setting, with all that a simulation of it needs.

One JSON object, `"format": "spmoe-run", "version": 1`; `docs/formats.md` describes its fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Final

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.machine.bits import parse_bits
from spmoe.machine.fields import Fields, parse_fields, read_fields
from spmoe.machine.hardware import Hardware, read_hardware
from spmoe.policy.parts.pace import Pace
from spmoe.policy.registry import RECIPES
from spmoe.scheduler.config import SchedulerConfig
from spmoe.trace.schema import DraftShape, ModelShape

FORMAT: Final = "spmoe-run"
VERSION: Final = 1
_MODEL: Final = ("layers", "experts", "top_k", "expert_params")
_REQUIRED: Final = Pace._fields[: -len(Pace._field_defaults)]
_DRAFT: Final = ("params", "active_params", "kv_bytes_per_token")


@dataclass(frozen=True, slots=True)
class TraceIdentity:
    """Which lines of which trace: the file's name and SHA-256, and how many of its token lines from the first on."""

    name: str
    sha256: str
    tokens: int

    @classmethod
    def of(cls, path: Path, tokens: int) -> TraceIdentity:
        """That of a file; InputError where it cannot be read."""
        return cls(path.name, fingerprint(path), tokens)


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; InputError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one policy took, run by run, and what its scheduler was set up with; `loads` are those of the last run."""

    config: SchedulerConfig
    tpots_ms: tuple[float, ...]
    loads: int

    @property
    def policy(self) -> str:
        return self.config.recipe

    @property
    def tpot_ms(self) -> float:
        """The median of the runs."""
        return median(self.tpots_ms)

    @property
    def spread(self) -> float:
        """From run to run: the standard deviation over the mean; 0 of a single run."""
        return stdev(self.tpots_ms) / mean(self.tpots_ms) if len(self.tpots_ms) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """All of a run file.

    `machine` says in words what it was measured on; `profile` is the document of what was measured there between the
    runs, and `hardware` the same as a profile; `skipped` says of other policies why they were not run.
    """

    trace: TraceIdentity
    machine: str
    model: ModelShape
    draft: DraftShape
    bits: float
    longest_request: int
    link_gbps: float | None
    profile: Mapping[str, Any]
    hardware: Hardware
    policies: tuple[Measured, ...]
    skipped: Mapping[str, str]

    @property
    def slots(self) -> int:
        return self.policies[0].config.slots

    @property
    def gamma(self) -> int:
        return self.policies[0].config.gamma

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "trace": asdict(self.trace),
            "machine": self.machine,
            "model": asdict(self.model),
            "draft": asdict(self.draft),
            "setting": {
                "bits": self.bits,
                "longest_request": self.longest_request,
                "link_gbps": self.link_gbps,
                "slots": self.slots,
                "cache_share": round(self.slots / (self.model.layers * self.model.experts), 6),
                "gamma": self.gamma,
            },
            "policies": [
                {
                    "policy": each.policy,
                    "tpot_ms": each.tpot_ms,
                    "spread": each.spread,
                    "runs_ms": list(each.tpots_ms),
                    "loads": each.loads,
                    "scheduler": {**asdict(each.config), "pace": each.config.pace._asdict()},
                }
                for each in self.policies
            ],
            "skipped": dict(self.skipped),
            "profile": dict(self.profile),
        }


def read_run(path: Path) -> Run:
    """The run file `path`; InputError naming file and field for whatever is wrong with it."""
    root = read_fields(path, str(path))
    root.text("format", (FORMAT,))
    if (version := root.whole("version")) != VERSION:
        raise InputError(f"{path}: field version: expected {VERSION}, got {version}")
    setting, profile = root.section("setting"), root.section("profile")
    skipped = root.section("skipped")
    run = Run(
        trace=_trace(root.section("trace")),
        machine=root.text("machine"),
        model=_model(root.section("model")),
        draft=_draft(root.section("draft")),
        bits=setting.one_of("bits", parse_bits),
        longest_request=setting.whole("longest_request"),
        link_gbps=None if setting.is_null("link_gbps") else float(setting.number("link_gbps")),
        profile={},
        hardware=read_hardware(profile),
        policies=tuple(_measured(each) for each in root.sections("policies")),
        skipped={name: skipped.text(name) for name in skipped},
    )
    for name in ("slots", "gamma"):
        setting.whole(name, zero=True)  # Said by every scheduler, too.
    setting.number("cache_share")
    setting.done()
    skipped.done()
    root.done()
    if not run.policies:
        raise InputError(f"{path}: field policies: expected at least one")
    for number, each in enumerate(run.policies):
        _check_scheduler(run, each.config, f"{path}: field policies.{number}.scheduler")
    return run


def log_path(logs: Path, policy: str) -> Path:
    """Where in the folder `logs` the decision log of a policy's run is."""
    return logs / f"{policy}.log"


def hardware_of(profile: Mapping[str, Any], place: str) -> Hardware:
    """The profile that a document is, called `place` in messages; InputError as in `load_hardware`."""
    return read_hardware(parse_fields(json.dumps(profile), place))


def _trace(fields: Fields) -> TraceIdentity:
    found = TraceIdentity(fields.text("name"), fields.text("sha256"), fields.whole("tokens"))
    fields.done()
    return found


def _model(fields: Fields) -> ModelShape:
    counts = {name: fields.whole(name) for name in _MODEL}
    rest = {name: fields.whole(name, zero=True) for name in ("dense_params", "kv_bytes_per_token")}
    model = ModelShape(name=fields.text("name"), **counts, **rest)
    fields.done()
    return model


def _draft(fields: Fields) -> DraftShape:
    draft = DraftShape(name=fields.text("name"), **{name: fields.whole(name, zero=True) for name in _DRAFT})
    fields.done()
    return draft


def _measured(fields: Fields) -> Measured:
    fields.text("policy", tuple(RECIPES))
    measured = Measured(
        _scheduler(fields.section("scheduler")),
        tuple(map(float, fields.numbers("runs_ms"))),
        fields.whole("loads", zero=True),
    )
    for name in ("tpot_ms", "spread"):
        fields.number(name, zero=True)  # Reckoned from the runs.
    fields.done()
    return measured


def _scheduler(fields: Fields) -> SchedulerConfig:
    pace = fields.section("pace")
    # What was not known yet when the file was written is not in it.
    paced = Pace(**{name: pace.whole(name, zero=True) for name in Pace._fields if name in _REQUIRED or name in pace})
    pace.done()
    names = ("layers", "experts", "top_k", "slots", "gamma", "cutoff", "depth")
    counts = {name: fields.whole(name, zero=True) for name in names}
    recipe, chooses = fields.text("recipe", tuple(RECIPES)), fields.flag("chooses")
    fields.done()
    try:
        return SchedulerConfig(recipe=recipe, pace=paced, chooses=chooses, **counts)
    except ValueError as error:
        raise InputError(f"{fields.place}: field {fields.path.rstrip('.')}: {error}") from None


def _check_scheduler(run: Run, config: SchedulerConfig, place: str) -> None:
    """All schedulers of a run decide for its model, with as many slots and drafted tokens."""
    own = (run.model.layers, run.model.experts, run.model.top_k, run.slots, run.gamma)
    found = (config.layers, config.experts, config.top_k, config.slots, config.gamma)
    if own != found:
        raise InputError(f"{place}: expected layers, experts, top_k, slots and gamma to be {own}, got {found}")
