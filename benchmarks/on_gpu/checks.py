"""What has to be right before any time means something: outputs, bytes, decisions and memory on this device."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import torch

from benchmarks.on_gpu.stages import ROOT
from benchmarks.on_gpu.worker import Task, told
from engine.checkpoints.bundled import bundled_pair
from engine.cli.reference import Request, compare
from engine.engine import Engine
from engine.memory.host_store import HostStore
from engine.memory.layout import Layout
from engine.memory.link import Link
from engine.memory.slot_buffer import SlotBuffer
from engine.options import Options
from engine.plan import make_plan
from spmoe.state.commands import Load, Purpose, Submit

POLICIES: Final = ("on-demand.lru", "spmoe.per-layer", "next-gate", "llamacpp.n-cpu-moe")
PROMPT: Final = list(range(60, 92))
NEW_TOKENS: Final = 40
_ROW: Final = 2**20 + 4096
"""Bytes: no power of two, which might hide a mistake."""


def checks(task: Task) -> dict[str, Any]:
    """What passed, and of all else why not, in a line; the tests for GPUs too, where there is a GPU and pytest.

    That something is wrong is a result: the stage itself does not fail.
    """
    device = task.device
    found: dict[str, str] = {}
    for policy in POLICIES:
        for slots in (8, 32):
            _note(found, f"greedy output, {policy}, {slots} slots", lambda p=policy, s=slots: greedy(device, p, s))
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        _note(found, "greedy output, Triton kernel", lambda: greedy(device, "spmoe.per-layer", 32, "triton"))
    _note(found, "bytes through the link", lambda: bytes_arrive(device))
    if device.type == "cuda":
        _note(found, "decisions in virtual time, beside the CPU's", decisions)
        _note(found, "memory is given back", memory)
    tests = run_tests(task) if device.type == "cuda" else {"left_out": "no CUDA device"}
    passed = sum(each == "passed" for each in found.values())
    return {"passed": passed, "of": len(found), "checks": found, "tests": tests}


def greedy(device: torch.device, policy: str, slots: int, kernel: str = "plain") -> None:
    """The bundled pair in float32 puts out what plain transformers do there, and slots hold what the store has."""
    options = {"policy": policy, "slots": slots, "device": str(device), "dtype": "float32", "kernel": kernel}
    with Engine.from_pretrained(*bundled_pair(), **options) as engine:
        output = engine.generate(PROMPT, NEW_TOKENS, ignore_eos=True).tokens
        engine.check_weights()
        plan = engine.plan
    compare(plan, [Request(PROMPT, output)], NEW_TOKENS, frozenset())


def bytes_arrive(device: torch.device) -> None:
    """Random rows, neighbours and scattered ones, are in their slots when the link says so."""
    layout = Layout.of({"bytes": ((_ROW,), torch.uint8)})
    store, slots = HostStore(layout, 16, pin=device.type == "cuda"), SlotBuffer(layout, 16, device)
    store.rows(0, 16).random_(0, 256, generator=torch.Generator().manual_seed(0))
    with Link(store, slots, 2) as link:
        for turn, places in enumerate((range(16), [(5 * key + 3) % 16 for key in range(16)])):
            loads = tuple(Load(key, slot, None) for key, slot in enumerate(places))
            for half in range(2):
                link.submit(Submit(2 * turn + half, Purpose.DEMAND, loads[8 * half : 8 * half + 8]))
            for _ in range(2):
                if (error := link.wait().error) is not None:
                    raise error
            wrong = [load for load in loads if not torch.equal(slots.rows(load.slot, 1).cpu(), store.rows(load.key, 1))]
            if wrong:
                raise AssertionError(f"{len(wrong)} of {len(loads)} rows differ, the first in slot {wrong[0].slot}")


def decisions() -> None:
    """In virtual time both devices decide the same, event by event."""
    seen = []
    for device in ("cpu", "cuda"):
        entries: list[tuple[object, ...]] = []
        options = Options(cache=0.5, device=device, dtype="float32", virtual_time="rtx-4090")
        observers = [lambda event, commands, entries=entries: entries.append((type(event), event.time, commands))]
        with Engine(make_plan(*bundled_pair(), options), observers) as engine:
            engine.generate(PROMPT, NEW_TOKENS, ignore_eos=True)
        seen.append(entries)
    if seen[0] != seen[1]:
        place = next((n for n, both in enumerate(zip(*seen, strict=False)) if both[0] != both[1]), len(min(seen)))
        raise AssertionError(f"event {place + 1} of {len(seen[0])} differs")


def memory() -> None:
    """A closed engine leaves nothing on the GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Engine.from_pretrained(*bundled_pair(), cache=0.5, device="cuda") as engine:
        engine.generate(PROMPT, 8)
    del engine
    if (left := torch.cuda.memory_allocated() - before) != 0:
        raise AssertionError(f"{left} bytes are left")


def run_tests(task: Task) -> dict[str, Any]:
    """Counts of the tests that need a GPU, and the first line of what each failure says."""
    tests = [path for path in (ROOT / "tests" / "engine").rglob("test_*.py") if "mark.cuda" in path.read_text("utf-8")]
    if not tests or importlib.util.find_spec("pytest") is None:
        return {"left_out": "pytest is not installed" if tests else "there are no tests here"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            subprocess.run([*command, *sorted(map(str, tests))], cwd=ROOT, timeout=task.left, check=False)
        except subprocess.TimeoutExpired:
            return {"left_out": f"they took longer than the {task.left:.0f} s that were left"}
        if not report.is_file():
            return {"left_out": "pytest wrote no report"}
        return read_report(report)


def read_report(path: Path) -> dict[str, Any]:
    """What a JUnit file says."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = {}
    skipped = 0
    for case in cases:
        wrong = next((each for each in case if each.tag in ("failure", "error")), None)
        if wrong is not None:
            lines = wrong.get("message", "").splitlines()
            failed[f"{case.get('classname')}.{case.get('name')}"] = lines[0][:200] if lines else wrong.tag
        skipped += any(each.tag == "skipped" for each in case)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def _note(found: dict[str, str], name: str, check: Callable[[], None]) -> None:
    try:
        check()
        found[name] = "passed"
    except Exception as error:
        traceback.print_exc()
        found[name] = told(error)
