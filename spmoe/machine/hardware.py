"""Hardware profiles: the link, the GPU, the draft model's speed and, where known, the CPU.

A profile is a JSON file, in `profiles/` or of one's own, in units people read (GB/s, us, ms, GiB, TFLOPS); here they
are whole bytes, FLOP/s and nanoseconds.  GB/s is 10^9 bytes per second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from spmoe.errors import InputError
from spmoe.machine.bits import parse_bits
from spmoe.machine.fields import Fields, read_fields
from spmoe.machine.timings import Timings
from spmoe.machine.units import GIB

_PACKAGE: Final = Path(__file__).parents[1]
# A wheel carries the profiles inside the package; a checkout has them at its top, where people look for them.
_PROFILES: Final = next(
    (folder for folder in (_PACKAGE / "profiles", _PACKAGE.parent / "profiles") if folder.is_dir()), _PACKAGE
)
_KINDS: Final = ("measured", "datasheet")


@dataclass(frozen=True, slots=True)
class Link:
    """Host to device.  A submission of n copies and b bytes takes
    latency_ns + (n - 1) copy_ns + b / bandwidth (bytes/s).
    """

    bandwidth: int
    latency_ns: int
    copy_ns: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """Effective memory bandwidth in bytes/s and compute in FLOP/s; fixed costs per MoE layer and per expert in ns."""

    memory_bytes: int
    bandwidth: int
    flops: int
    layer_overhead_ns: int
    expert_overhead_ns: int


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft token takes token_ns for the draft model described: parameters it reads per token, layers, bits."""

    token_ns: int
    params: int
    layers: int
    bits: float


@dataclass(frozen=True, slots=True)
class Cpu:
    """`cores` together: effective memory bandwidth in bytes/s, and gflops (10^9 FLOP/s)."""

    name: str
    cores: int
    bandwidth: int
    gflops: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine.  `kind` says whether its numbers were measured on it or come from data sheets; cpu None: unknown.

    `timings` are those of a pair that was timed on it; for other models its figures count.
    """

    name: str
    kind: Literal["measured", "datasheet"]
    source: str
    link: Link
    gpu: Gpu
    draft: Draft
    cpu: Cpu | None
    timings: Timings | None = None


def hardware_names() -> tuple[str, ...]:
    """The names of the profiles that come with the project."""
    return tuple(sorted(path.stem for path in _PROFILES.glob("*.json")))


def load_hardware(name_or_path: str | Path) -> Hardware:
    """The profile with this name, or of this file (anything that ends in .json or has a folder in it).

    Raises InputError for an unknown name (listing the known ones), an unreadable file, and unknown, missing, wrongly
    typed, non-finite, zero or negative fields: "profiles/x.json: field link.bandwidth_gb_per_s: expected ...".
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".json") or os.sep in text:
        return _read(Path(name_or_path), text)
    names = hardware_names()
    if text not in names:
        raise InputError(f"hardware {text!r} is unknown; expected one of {', '.join(names)}, or a profile file (.json)")
    return _read(_PROFILES / f"{text}.json", f"profiles/{text}.json")


def _read(path: Path, place: str) -> Hardware:
    return read_hardware(read_fields(path, place))


def read_hardware(root: Fields) -> Hardware:
    """The profile that `root` holds, and nothing else; InputError as in `load_hardware`."""
    hardware = Hardware(
        name=root.text("name"),
        kind=cast(Literal["measured", "datasheet"], root.text("kind", _KINDS)),
        source=root.text("source"),
        link=_link(root.section("link")),
        gpu=_gpu(root.section("gpu")),
        draft=_draft(root.section("draft")),
        cpu=None if root.is_null("cpu") else _cpu(root.section("cpu")),
        timings=Timings.read(root.section("timings")) if "timings" in root else None,
    )
    if "measured" in root:
        root.skip("measured")  # How it was measured, and how far readings were apart.
    if "notes" in root:
        _check_notes(root.section("notes"), root)
    root.done()
    return hardware


def _link(fields: Fields) -> Link:
    link = Link(
        bandwidth=_scaled(fields, "bandwidth_gb_per_s", 10**9),
        latency_ns=_scaled(fields, "latency_us", 10**3),
        copy_ns=_scaled(fields, "copy_us", 10**3),
    )
    fields.done()
    return link


def _gpu(fields: Fields) -> Gpu:
    gpu = Gpu(
        memory_bytes=_scaled(fields, "memory_gib", GIB),
        bandwidth=_scaled(fields, "bandwidth_gb_per_s", 10**9),
        flops=_scaled(fields, "tflops", 10**12),
        layer_overhead_ns=_scaled(fields, "layer_overhead_us", 10**3),
        expert_overhead_ns=_scaled(fields, "expert_overhead_us", 10**3),
    )
    fields.done()
    return gpu


def _draft(fields: Fields) -> Draft:
    fields.text("model")  # for the reader of the file; the numbers beside it say all that is used
    draft = Draft(
        token_ns=_scaled(fields, "token_ms", 10**6),
        params=fields.whole("params"),
        layers=fields.whole("layers"),
        bits=fields.one_of("bits", parse_bits),
    )
    fields.done()
    return draft


def _cpu(fields: Fields) -> Cpu:
    cpu = Cpu(
        name=fields.text("name"),
        cores=fields.whole("cores"),
        bandwidth=_scaled(fields, "bandwidth_gb_per_s", 10**9),
        gflops=fields.whole("gflops"),
    )
    fields.done()
    return cpu


def _scaled(fields: Fields, name: str, unit: int) -> int:
    """The field's number times `unit` as a whole number, at least 1; decimal arithmetic, so the same everywhere."""
    return max(1, int((fields.number(name) * unit).to_integral_value()))


def _check_notes(notes: Fields, root: Fields) -> None:
    """Every note is a text and explains a field that exists."""
    for path in notes:
        notes.text(path)
        if not root.has(path):
            raise InputError(f"{root.place}: field notes.{path}: expected the path of a field of this file")
    notes.done()
