"""`python -m benchmarks.gpu`: what it skips, leaves out and survives, and what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import MINUTES, Outcome, fits, run
from benchmarks.on_gpu.files import NOT_ON_A_GPU, read_stage, stage_path, write_json, write_stage
from benchmarks.on_gpu.moved import DecodeTransfers
from benchmarks.on_gpu.stages import DEVICES, ROOT, TRACES, Stage, stages
from spmoe.results.run import read_run
from spmoe.state.commands import Load, Purpose, Speculate, Submit
from spmoe.state.events import BatchArrived, LayerDone, RequestBegun, StepBegun, StepEnded
from spmoe.trace.excerpt import excerpt
from spmoe.trace.reader import TraceFile
from spmoe.trace.summary import summarise

NOT_NEEDED = ("accelerate", "hypothesis", "matplotlib", "pandas", "pytest", "rich", "scipy", "simpy", "triton")


def stage(name: str, group: str = "", seconds: float = 10, setup: float = 5, cheap: bool = False) -> Stage:
    return Stage(name, "test", seconds, {"n": 1}, group or name, setup, cheap)


class Workers:
    """In place of processes: stages named in `broken` fail, those in `deadly` end the process without a word, and
    behind one in `slow` there is no time for others."""

    def __init__(
        self, out: Path, broken: Sequence[str] = (), deadly: Sequence[str] = (), slow: Sequence[str] = ()
    ) -> None:
        self.calls: list[list[str]] = []
        self._out = out
        self._broken, self._deadly, self._slow = broken, deadly, slow

    def __call__(self, todo: Sequence[Stage], seconds: float) -> str:
        self.calls.append([each.name for each in todo])
        for each in todo:
            if each.name in self._deadly:
                return "its process ended with status -9"
            error = "ValueError: no" if each.name in self._broken else ""
            write_stage(self._out, each, "cpu", "here", 1.0, result={}, error=error)
            if error:
                return "its process ended with status 1"
            if each.name in self._slow:
                break
        return ""


def states(outcomes: Sequence[Outcome]) -> dict[str, str]:
    return {each.stage.name: each.state for each in outcomes}


def go(
    todo: Sequence[Stage], out: Path, work: Callable[[Sequence[Stage], float], str], seconds: float = 1e6
) -> list[Outcome]:
    return run(todo, out, time.monotonic() + seconds, work, lambda outcome: None)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    todo = [stage("one"), stage("two", "group"), stage("three", "group"), stage("cheap", cheap=True)]
    work = Workers(tmp_path)
    assert states(go(todo, tmp_path, work)) == dict.fromkeys(("one", "two", "three", "cheap"), "done")
    assert work.calls == [["one"], ["two", "three"], ["cheap"]]
    stage_path(tmp_path, todo[2]).write_text('{"state": "do')  # Cut off.
    work.calls.clear()
    assert states(go(todo, tmp_path, work)) == {"one": "kept", "two": "kept", "three": "done", "cheap": "done"}
    assert work.calls == [["three"], ["cheap"]]


def test_other_settings_are_another_result(tmp_path: Path) -> None:
    work = Workers(tmp_path)
    go([stage("one")], tmp_path, work)
    changed = stage("one")._replace(settings={"n": 2})
    assert read_stage(tmp_path, changed) is None
    assert states(go([changed], tmp_path, work)) == {"one": "done"}


def test_a_failure_is_told_and_stops_nobody_else(tmp_path: Path) -> None:
    todo = [stage("one", "group"), stage("two", "group"), stage("three", "group"), stage("four")]
    work = Workers(tmp_path, broken=["one"], deadly=["two"])
    found = go(todo, tmp_path, work)
    assert states(found) == {"one": "failed", "two": "failed", "three": "done", "four": "done"}
    assert [each.why for each in found[:2]] == ["ValueError: no", "its process ended with status -9"]
    assert work.calls == [["one", "two", "three"], ["two", "three"], ["three"], ["four"]]
    # What failed is tried again.
    assert states(go(todo, tmp_path, Workers(tmp_path))) == {
        "one": "done",
        "two": "done",
        "three": "kept",
        "four": "kept",
    }


def test_what_does_not_fit_is_left_out_and_what_does_is_not(tmp_path: Path) -> None:
    todo = [stage("one", seconds=30), stage("long", seconds=100), stage("two", "group"), stage("three", "group", 60)]
    found = go(todo, tmp_path, Workers(tmp_path), seconds=50)
    assert states(found) == {"one": "done", "long": "left out", "two": "done", "three": "left out"}
    assert "105 s" in found[1].why


def test_stages_of_a_group_fit_as_long_as_all_before_them_do() -> None:
    group = [stage("one", "group"), stage("two", "group"), stage("three", "group", seconds=1)]
    assert [each.name for each in fits(group, 25.5)] == ["one", "two"]
    assert fits(group, 14.9) == []


def test_what_a_slow_stage_left_no_time_for_is_left_out(tmp_path: Path) -> None:
    todo = [stage("one", "group"), stage("two", "group")]
    assert states(go(todo, tmp_path, Workers(tmp_path, slow=["one"]))) == {"one": "done", "two": "left out"}


@pytest.mark.parametrize("device", DEVICES)
def test_the_stages_fit_their_time_and_differ_in_name(device: str) -> None:
    known = stages(device)
    groups = dict.fromkeys(each.group for each in known)
    names = [each.name for each in known]
    assert len(names) == len(set(names))
    first = sum(next(each.setup for each in known if each.group == group) for group in groups)
    limit = {"cuda": 60 * MINUTES, "cpu": 180}[device]
    assert first + sum(each.seconds for each in known) <= limit
    # In one process: a group is not torn apart.
    order = [each.group for each in known]
    assert [group for place, group in enumerate(order) if place == 0 or order[place - 1] != group] == list(groups)


def test_files_are_small_and_read_back(tmp_path: Path) -> None:
    document = {
        "text": 'with "quotes"',
        "list": [1, {"a": [2]}],
        "empty": [],
        "object": {str(n): [n] for n in range(40)},
    }
    write_json(tmp_path / "a.json", document)
    assert json.loads((tmp_path / "a.json").read_text()) == document


def test_transfers_for_prompts_do_not_count() -> None:
    """By hand: in each of two requests 2 loads for the prompt and 1 in decode, of which half is waited for."""
    moved = DecodeTransfers(1000)
    for request, start in enumerate((0, 1000)):
        moved.observe(RequestBegun(start, request), (_submit(2 * request, 2),))
        moved.observe(BatchArrived(start + 100, 2 * request, start, start + 100), ())
        moved.observe(LayerDone(start + 110, 0, ((start, start + 100),)), ())
        moved.observe(StepBegun(start + 120, 0), (_submit(2 * request + 1, 1), Speculate(2, 0, 1)))
        moved.observe(BatchArrived(start + 180, 2 * request + 1, start + 140, start + 180), ())
        moved.observe(LayerDone(start + 190, 0, ((start + 160, start + 180),)), ())
        moved.observe(StepEnded(start + 200, 1), ())
    found = moved.result()
    assert (found.loads, found.busy_ns, found.stalled_ns) == (2, 80, 40)
    assert (found.drafted, found.accepted) == (4, 2)
    assert moved.to_json() == {"moved_bytes": 2000, "hidden_share": 0.5, "gb_per_s": 25.0, "acceptance": 0.5}


def _submit(batch: int, loads: int) -> Submit:
    return Submit(batch, Purpose.DEMAND, tuple(Load(key, key, None) for key in range(loads)))


@pytest.mark.slow
def test_a_geometry_is_profiled_and_measured(tmp_path: Path) -> None:
    """All of it with a random pair of the shape of the shipped one, in next to no memory."""
    torch = pytest.importorskip("torch")
    from benchmarks.engine.random_pair import PairShape, write_random_pair
    from benchmarks.on_gpu.worker import work_off

    torch.set_num_threads(1)
    target, draft = map(str, write_random_pair(tmp_path, PairShape(layers=8)))
    models = {"target": target, "draft": draft, "trace": "pico.jsonl", "dtype": "float32", "study_tokens": 16}
    settings = {**models, "tokens": 6, "host_bytes": 64 * 2**20, "device_bytes": 2**18}
    # 6 slots, fewer than there are layers.
    few = {**settings, "policies": ("on-demand.lru", "spmoe.per-layer", "clairvoyant"), "cache": 0.1, "repeats": 2}
    todo = [Stage("a.profile", "profile", 60, settings, "a", 60), Stage("a.measure", "measure", 60, few, "a", 60)]
    assert work_off(todo, torch.device("cpu"), tmp_path, 300)
    profile, measured = (read_stage(tmp_path, each) for each in todo)
    assert profile is not None and measured is not None
    assert (tmp_path / profile["result"]["file"]).is_file()
    result = measured["result"]
    run = read_run(tmp_path / result["file"])
    assert (run.slots, result["slots"], result["of"]) == (6, 6, 64)
    assert {each.policy for each in run.policies} == {*result["policies"]} == {"on-demand.lru", "clairvoyant"}
    assert "needs at least 8 slots" in result["left_out_policies"]["spmoe.per-layer"]
    assert all(each["moved_bytes"] > 0 and 0 <= each["hidden_share"] <= 1 for each in result["policies"].values())


@pytest.mark.parametrize(("name", "slots"), [("mixtral-8x7b.24gib", 49), ("deepseek-v2-lite.24gib", 792)])
def test_a_card_of_24_gib_has_room_for_so_many_experts(name: str, slots: int) -> None:
    """As docs/gpu.md says: Mixtral's (24 - 1 - 2.99 - 3.58 - 0.03) GiB / 336 MiB, for one."""
    pytest.importorskip("torch")
    from benchmarks.on_gpu.geometry import room

    settings = next(each.settings for each in stages("cuda") if each.name == name)
    file = TraceFile(TRACES / settings["trace"])
    assert file.header.draft is not None
    trace = excerpt(file, settings["tokens"], file.header.model, file.header.draft)
    found, why = room(settings, trace, summarise(trace).longest_request)
    assert found.slots == slots
    assert why.endswith("the draft counted at 4.25 bits")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that lacks whatever is not needed."""
    text = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in NOT_NEEDED)
    (tmp_path / "sitecustomize.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.mark.slow
def test_it_needs_little(tmp_path: Path, bare: dict[str, str]) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--only",
        "link",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    link, summary = (json.loads((out / name).read_text()) for name in ("link.json", "summary.json"))
    assert link["state"] == "done" and link["device"] == "cpu" and link["note"] == summary["note"] == NOT_ON_A_GPU
    assert len(link["result"]["batches"]) == 4 and all(each["ratio"] > 0 for each in link["result"]["batches"])
    assert {row["stage"]: row["state"] for row in summary["stages"]}["pico-target.profile"] == "not asked for"
    assert NOT_ON_A_GPU in done.stdout and "matplotlib is not installed" in done.stdout
    # Nor do the parts that did not run.
    modules = ", ".join(
        f"benchmarks.on_gpu.{name}" for name in ("checks", "fidelity", "geometry", "kernels", "offload")
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"], env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu: torch finds no CUDA device here; --device cpu runs it small\n"


def test_who_ends_the_command_ends_what_it_started(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path), "--only", "checks"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            process.kill()
            pytest.skip("the system does not tell")
        while not (started := children.read_text().split()) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)  # Until it is not only there, but known to who started it.
        process.terminate()
        assert process.wait(30) == 143
    assert started and not any(Path(f"/proc/{child}").exists() for child in started)
