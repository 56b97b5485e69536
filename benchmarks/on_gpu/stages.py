"""What is measured, in which order, and how long each takes.  Knows nothing of PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from spmoe.machine.geometry import geometry

ROOT: Final = Path(__file__).resolve().parents[2]
TRACES: Final = ROOT / "traces"
DEVICES: Final = ("cuda", "cpu")

_CODE: Final = ("spmoe/**/*.py", "spmoe/**/*.json", "engine/**/*.py", "engine/configs/**/*.json", "benchmarks/**/*.py")
_PACKAGES: Final = ("torch", "transformers")


class Stage(NamedTuple):
    """One thing to measure.

    `seconds` are those that it may be expected to take, and the most that repetitions are made for.  Stages of one
    `group` follow each other in one process and share what that has prepared in `setup` seconds.  `settings` are all
    that `kind`'s function in `worker.KINDS` is told.  What is `cheap` is done again whenever it is asked for.
    """

    name: str
    kind: str
    seconds: float
    settings: Mapping[str, Any]
    group: str
    setup: float
    cheap: bool = False

    @property
    def version(self) -> str:
        """Changes with code, libraries and settings: what another one left behind is not this one's result."""
        told = json.dumps([self.name, self.kind, dict(self.settings), _libraries(), _fingerprint()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def stages(device: str) -> tuple[Stage, ...]:
    """All there is to measure, what matters most first."""
    return _ON_GPU if device == "cuda" else _ON_CPU


def _alone(name: str, seconds: float, setup: float, cheap: bool = False, **settings: Any) -> Stage:
    """A stage with a process of its own."""
    return Stage(name, name, seconds, settings, name, setup, cheap)


class _Model(NamedTuple):
    """A geometry, its draft's, and what its stages have in common."""

    target: str
    draft: str
    trace: str
    dtype: str
    setup: float
    study_tokens: int
    tokens: int
    host_bytes: int | None
    device_bytes: int | None

    def profile(self, seconds: float) -> Stage:
        return self._stage("profile", "profile", seconds)

    def measure(self, name: str, seconds: float, policies: tuple[str, ...], **room: Any) -> Stage:
        return self._stage(name, "measure", seconds, policies=policies, **room)

    def _stage(self, name: str, kind: str, seconds: float, **settings: Any) -> Stage:
        shared = {key: value for key, value in self._asdict().items() if key != "setup"}
        return Stage(f"{self.target}.{name}", kind, seconds, {**shared, **settings}, self.target, self.setup)


_GIB: Final = 2**30
_POLICIES: Final = ("on-demand.lru", "spmoe.paper", "spmoe.per-layer", "next-gate", "clairvoyant")
_ON_HOST: Final = "llamacpp.cpu-moe"
_PARTLY_ON_HOST: Final = "llamacpp.n-cpu-moe"
_REPEATS: Final = 3
_DRAFT_BITS: Final = 4.25
"""So would a 24 GiB card hold it: in 16 bits Mistral-7B leaves Mixtral 19 slots, fewer than it has layers."""

_MIXTRAL: Final = geometry("mixtral-8x7b").expert_bytes(16)
_DEEPSEEK: Final = geometry("deepseek-v2-lite").expert_bytes(16)
_PICO_EXPERT: Final = 393_216
"""Bytes of an expert of the bundled pair, in float32."""

# Bytes of a row, rows per batch, and whether the rows of a batch are neighbours: those travel as one copy.
_GPU_BATCHES: Final = (
    (64 * 1024, 1, True),
    (2**20, 1, True),
    (_DEEPSEEK, 1, True),
    (_DEEPSEEK, 8, False),
    (_DEEPSEEK, 8, True),
    (_MIXTRAL, 1, True),
    (_MIXTRAL, 4, True),
)
_CPU_BATCHES: Final = ((64 * 1024, 1, True), (_PICO_EXPERT, 1, True), (_PICO_EXPERT, 8, False), (_PICO_EXPERT, 8, True))

# Noise in a few GiB stands in for all experts: it is more than any cache holds, and pinning it takes seconds, not a
# minute.
_BIG: Final = _Model("mixtral-8x7b", "mistral-7b", "mixtral.jsonl", "bfloat16", 60, 16, 12, 8 * _GIB, 3 * _GIB)
_FINE: Final = _Model(
    "deepseek-v2-lite", "deepseek-v2-lite-awq", "deepseek-v2-lite.jsonl", "bfloat16", 40, 16, 24, 8 * _GIB, 3 * _GIB
)
_PICO: Final = _Model("pico-target", "pico-draft", "pico.jsonl", "float32", 12, 16, 24, None, None)

_ON_GPU: Final = (
    _alone("checks", 45, 10),
    _alone("link", 20, 10, batches=_GPU_BATCHES, pairs=15, bytes=2 * _GIB),
    _FINE.profile(30),
    _FINE.measure("24gib", 30, (*_POLICIES, _ON_HOST), vram="24GiB", draft_bits=_DRAFT_BITS, repeats=_REPEATS),
    _FINE.measure("cache-25", 25, (*_POLICIES, _PARTLY_ON_HOST), cache=0.25, repeats=_REPEATS),
    _BIG.profile(45),
    _BIG.measure("24gib", 55, (*_POLICIES, _ON_HOST), vram="24GiB", draft_bits=_DRAFT_BITS, repeats=_REPEATS),
    _BIG.measure("cache-50", 35, (*_POLICIES, _PARTLY_ON_HOST), cache=0.5, repeats=_REPEATS),
    _alone("offload", 30, 12, layers=8, hidden=1024, expert_width=2048, tokens=24, rounds=3, caches=(0.25, 0.5)),
    _alone("kernels", 35, 10),
    _alone("fidelity", 10, 3, cheap=True),
)
# The same, small: the bundled pair in place of large ones.  A GiB is reckoned for workspace, and 12 MiB of experts are
# half of them.
_ON_CPU: Final = (
    _alone("checks", 25, 6),
    _alone("link", 5, 5, batches=_CPU_BATCHES, pairs=15, bytes=32 * 2**20),
    _PICO.profile(15),
    _PICO.measure("vram", 20, (*_POLICIES, _ON_HOST), vram="1046MiB", draft_bits=32, repeats=2),
    _alone("offload", 15, 6, layers=4, hidden=256, expert_width=512, tokens=24, rounds=3, caches=(0.25, 0.5)),
    _alone("kernels", 2, 5),
    _alone("fidelity", 10, 3, cheap=True),
)


def _libraries() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _fingerprint() -> str:
    """Of the code that results depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _CODE for path in ROOT.glob(pattern)}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
