"""Sweeps: which cells there are, that each is run once whatever happens, and that nobody can tell from the table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sim
from sim.__main__ import main
from sim.sweeps.cell import IDENTITY, code_digest, identity
from sim.sweeps.grid import grid
from sim.sweeps.journal import Journal, read_rows
from sim.sweeps.sweep import Task, run_sweep
from sim.sweeps.table import read_table
from spmoe.errors import InputError
from spmoe.policy.registry import RECIPES
from tests.conformance.cases import make_trace
from tests.paths import PROFILES, ROOT
from tests.sim.files import small_trace, write
from tests.words import with_defaults

ON_DEMAND = ["on-demand.lru", "on-demand.lru-per-layer"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return small_trace(tmp_path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The policies of all cells that are run in this process."""
    module = sys.modules["sim.sweeps.sweep"]
    run_task: Callable[[Task], object] = module.run_task
    policies: list[str] = []

    def counted(task: Task) -> object:
        policies.extend(cell.policy for cell in task.cells)
        return run_task(task)

    monkeypatch.setattr(module, "run_task", counted)
    return policies


def command(trace: Path, out: Path, *more: str, policies: list[str] = ON_DEMAND, jobs: str = "1") -> list[str]:
    return ["sweep", str(trace), "--policy", *policies, "--out", str(out), "--jobs", jobs, *more]


# The grid


def test_policies_vary_fastest_and_traces_slowest(trace: Path, tmp_path: Path) -> None:
    other = write(make_trace(5, 2, 4, 1, [6], agreement=1.0, empty=0), tmp_path / "other.jsonl")
    cells = grid([trace, other], ON_DEMAND, ["rtx-4090", "h200"], slots=[4, 6], gamma=[0, 2])
    assert len(cells) == 2 * 2 * 2 * 2 * 2
    first = [(cell.columns["trace"], cell.columns["room"], cell.columns["gamma"], cell.policy) for cell in cells[:5]]
    assert first == [
        ("small.jsonl", "slots 4", 0, "on-demand.lru"),
        ("small.jsonl", "slots 4", 0, "on-demand.lru-per-layer"),
        ("small.jsonl", "slots 4", 2, "on-demand.lru"),
        ("small.jsonl", "slots 4", 2, "on-demand.lru-per-layer"),
        ("small.jsonl", "slots 6", 0, "on-demand.lru"),
    ]
    assert [cell.columns["trace"] for cell in cells] == ["small.jsonl"] * 16 + ["other.jsonl"] * 16
    assert len({identity(cell.columns) for cell in cells}) == len(cells)


def test_cutoffs_are_for_policies_that_have_one(trace: Path) -> None:
    def asked(cutoff: object) -> list[tuple[str, object, object]]:
        cells = grid(trace, ["on-demand.lru", "spmoe.paper"], slots=9, cutoff=cutoff)  # type: ignore[arg-type]
        return [(cell.policy, cell.cutoff, cell.columns["cutoff_asked"]) for cell in cells]

    assert asked(None) == [("on-demand.lru", None, None), ("spmoe.paper", None, "analytical")]
    assert asked(["best", 2]) == [
        ("on-demand.lru", None, None),
        ("spmoe.paper", "best", "best"),
        ("spmoe.paper", 2, "2"),
    ]
    assert [cutoff for _, cutoff, _ in asked([1, "all"])] == [None, 1, 0, 2, 3]


def test_lossy_policies_are_asked_for_by_flag(trace: Path) -> None:
    lossy = [name for name, one in RECIPES.items() if not one.lossless]
    assert lossy
    assert {cell.policy for cell in grid(trace, slots=9)} == set(RECIPES) - set(lossy)
    assert {cell.policy for cell in grid(trace, slots=9, lossy=True)} == set(RECIPES)
    with pytest.raises(InputError, match=r"changes the model's output; --lossy"):
        grid(trace, lossy, slots=9)
    assert {cell.policy for cell in grid(trace, [lossy[0], "on-demand.lru"], slots=9)} == {"on-demand.lru"}
    assert sim.sweep(trace, lossy, slots=9, lossy=True, jobs=1).lossless.tolist() == [False] * len(lossy)


def test_with_and_without_experts_on_the_cpu_are_different_cells(trace: Path) -> None:
    policies = ["spmoe.foresight.split", "llamacpp.cpu-moe"]
    cells = {cpu: grid(trace, policies, slots=9, cpu_experts=cpu) for cpu in (True, False)}
    assert len({identity(cell.columns) for each in cells.values() for cell in each}) == 4
    found = sim.sweep(trace, policies, slots=9, cpu_experts=False, jobs=1)
    assert found.cpu_experts.tolist() == [False, False]
    assert found.fetch_only[0] and "--no-cpu-experts" in found.skipped[1]


def test_what_is_given_twice_is_one_cell(trace: Path) -> None:
    twice = grid(trace, ["next-gate", "next-gate"], ["h200", "h200"], bits=["16", 16], slots=[9, 9], gamma=[4, 4])
    assert len(twice) == 1


def test_a_changed_trace_or_machine_is_another_cell(trace: Path, tmp_path: Path) -> None:
    profile = tmp_path / "mine.json"
    known = json.loads((PROFILES / "h200.json").read_text())
    profile.write_text(json.dumps(known))

    def names() -> set[tuple[str, ...]]:
        return {identity(cell.columns) for cell in grid(trace, "next-gate", str(profile), slots=9)}

    before = names()
    assert names() == before
    known["link"]["latency_us"] += 1
    profile.write_text(json.dumps(known))
    slower = names()
    assert not slower & before
    small_trace(tmp_path, (12, 7, 8))
    assert not names() & slower


def test_rows_say_which_code_made_them() -> None:
    assert code_digest() == code_digest()
    assert re.fullmatch("sha256:[0-9a-f]{16}", code_digest())


# The table


def test_a_row_holds_what_a_replay_says(trace: Path) -> None:
    table = sim.sweep(trace, ["on-demand.lru", "spmoe.paper"], slots=9, gamma=[0, 3], cutoff=2, jobs=1)
    assert len(table) == 4
    for gamma in (0, 3):
        alone = sim.replay(trace, ["on-demand.lru", "spmoe.paper"], slots=9, gamma=gamma, cutoff=2).to_json()
        for result in alone["results"]:
            rows = table[(table.policy == result["policy"]) & (table.gamma == gamma)]
            assert len(rows) == 1
            row = rows.iloc[0]
            for name, value in result.items():
                assert row[name] == value or (value is None and row[[name]].isna().all()), name
            assert row.bound_tpot_ms == alone["bound"]["tpot_ms"]
            assert row.slots == 9 and row.cache_share == 0.5 and row.feasible and row["trace"] == "small.jsonl"
    assert table.cutoff.dropna().tolist() == [2, 2]
    assert table.skipped.isna().all()


def test_what_does_not_apply_is_a_row_that_says_why(trace: Path, tmp_path: Path) -> None:
    tiny = write(make_trace(5, 2, 4, 1, [6, 6], agreement=1.0, empty=0), tmp_path / "tiny.jsonl")
    out = tmp_path / "out.csv"
    lines = tiny.read_text().splitlines()
    head = json.loads(lines[0])
    del head["forecasts"]["draft"]
    bare = [json.loads(line) for line in lines[1:]]
    for line in bare:
        for one in [line, *line.get("rejected", [])]:
            one.get("forecasts", {}).pop("draft", None)
    tiny.write_text("".join(json.dumps(line) + "\n" for line in (head, *bare)))
    table = sim.sweep(
        [trace, tiny], ["on-demand.lru", "spmoe.paper"], slots=[4, 12], cutoff=3, gamma=2, out=out, jobs=1
    )
    said = {(row["trace"], row["room"], row["policy"]): row["skipped"] for row in read_table(out) if row["skipped"]}
    assert len(table) == 8
    assert said == {
        ("tiny.jsonl", "slots 4", "spmoe.paper"): "a cutoff of 3 layers is more than the 2 that there are",
        ("tiny.jsonl", "slots 12", "on-demand.lru"): "slots: expected 1 to 8 (2 layers x 4), got 12",
        ("tiny.jsonl", "slots 12", "spmoe.paper"): "slots: expected 1 to 8 (2 layers x 4), got 12",
    }
    again = sim.sweep(tiny, ["spmoe.paper", "on-demand.lru"], slots=4, gamma=2, jobs=1)
    lacking = "needs draft forecasts, which the trace does not have; spmoe.next-gate does without"
    assert again.skipped[0] == lacking
    assert again.tpot_ms.isna().tolist() == [True, False]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_any_number_of_jobs_gives_the_same_bytes(trace: Path, tmp_path: Path, suffix: str) -> None:
    written = []
    for jobs in ("1", "2"):
        out = tmp_path / f"{jobs}{suffix}"
        words = ["--slots", "4", "9", "--gamma", "0", "3"]
        assert main(command(trace, out, *words, policies=["on-demand.lru", "spmoe.paper", "next-gate"], jobs=jobs)) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert len(read_table(tmp_path / f"1{suffix}")) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1{suffix}", f"2{suffix}", "small.jsonl"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_larger_grid_runs_new_cells_only(trace: Path, tmp_path: Path, ran: list[str], suffix: str) -> None:
    out, whole = tmp_path / f"grown{suffix}", tmp_path / f"whole{suffix}"
    assert main(command(trace, out, "--slots", "4", policies=["on-demand.lru"])) == 0
    assert ran == ["on-demand.lru"]
    assert main(command(trace, out, "--slots", "9", "4")) == 0
    assert len(ran) == 1 + 3
    assert main(command(trace, out, "--slots", "9", "4")) == 0
    assert len(ran) == 1 + 3
    assert main(command(trace, whole, "--slots", "9", "4")) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_smaller_grid_says_what_it_drops(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main(command(trace, out, "--slots", "4", "9")) == 0
    assert main(command(trace, out, "--slots", "4")) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "2 cells; 2 of them were there already; 2 that were there are not of this grid" in said
    assert len(read_table(out)) == 2


def test_a_dry_run_counts_and_writes_nothing(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main(command(trace, out, "--slots", "4", "9", "--dry-run")) == 0
    assert capsys.readouterr().out == "4 cells\n"
    assert list(tmp_path.iterdir()) == [trace]
    assert main(command(trace, out, "--slots", "4")) == 0
    capsys.readouterr()
    assert main(command(trace, out, "--slots", "4", "9", "--dry-run")) == 0
    assert capsys.readouterr().out == "4 cells; 2 of them are done\n"


# Interruptions


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "sim", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_rows(journal: Path, count: int, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not journal.exists() or len(read_rows(journal)) < count:
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, ran: list[str], jobs: str) -> None:
    trace = small_trace(tmp_path, (120,))
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    axes = ("--slots", *map(str, range(3, 9)), "--gamma", "0", "4")
    words = command(trace, out, *axes)
    started = start(command(trace, out, *axes, jobs=jobs))
    wait_for_rows(journal, 3, started)
    started.kill()
    started.communicate(timeout=30)  # Ends when the last worker does: none outlives its parent.
    done = len({identity(row) for row in read_rows(journal)})
    assert 3 <= done < 24 and not out.exists()
    with journal.open("ab") as stream:
        stream.write(b'{"trace": "small.js')  # As if the kill had come in the middle of a line.
    assert main(words) == 0
    assert len(ran) == 24 - done
    assert not journal.exists()
    whole = tmp_path / "whole.csv"
    assert main(command(trace, whole, *axes)) == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_says_how_far_it_came(tmp_path: Path, jobs: str) -> None:
    trace = small_trace(tmp_path, (480,))
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    axes = ("--slots", *map(str, range(3, 9)), "--gamma", "0", "4")
    started = start(command(trace, out, *axes, jobs=jobs))
    wait_for_rows(journal, 1, started)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    done = len(read_rows(journal))
    assert said.decode() == f"interrupted: {done} of 24 cells are done; the same command goes on from there\n"


def test_a_torn_line_costs_nothing_but_itself(tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    with Journal(table) as journal:
        journal.add({"gamma": 1})
        journal.add({"gamma": 2})
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-5])
    with Journal(table) as journal:
        assert journal.rows == [{"gamma": 1}]
        journal.add({"gamma": 3})
    assert read_rows(journal.path) == [{"gamma": 1}, {"gamma": 3}]
    with Journal(table) as journal:
        journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_changes_meanwhile_is_refused(trace: Path) -> None:
    cells = grid(trace, ON_DEMAND, slots=4)
    small_trace(trace.parent, (12, 7, 8))
    with pytest.raises(InputError, match=r"small\.jsonl: changed while the sweep was running"):
        run_sweep(cells, None, 1)


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "on-demand.mru"], ["policy", "on-demand.mru", "on-demand.lru"]),
        (["--policy", "nobody.*"], ["called like", "nobody", "spmoe.paper"]),
        (["--hardware", "rtx-4090", "rtx-9999"], ["rtx-9999"]),
        (["--bits", "16", "3"], ["bits", "4.25"]),
        (["--gamma", "4", "-1"], ["gamma", "0 to 1024", "-1"]),
        (["--cache", "0.5", "1.5"], ["cache", "up to 1", "1.5"]),
        (["--cache", "nan"], ["cache", "nan"]),
        (["--slots", "4", "9999"], ["slots", "1 to 18", "9999"]),
        (["--vram", "18GiB", "abc"], ["vram", "abc"]),
        (["--vram", "18GiB", "1GiB"], ["vram", "room for at least one expert"]),
        (["--cache", "0.5", "--slots", "3"], ["--slots", "--cache", "not allowed"]),
        (["--cutoff", "0", "99"], ["cutoff", "0..3", "99"]),
        (["--cutoff", "x"], ["cutoff", "best or all", "x"]),
        (["--jobs", "0"], ["jobs", "at least 1", "0"]),
        (["--jobs", "many"], ["--jobs", "many"]),
        (["--out", "table.txt"], ["table.txt", ".csv or .parquet"]),
        (["--out", "nowhere/table.csv"], ["nowhere/table.csv", "cannot be written"]),
        (["--out", "other.csv"], ["other.csv", "no table of a sweep"]),
        (["--out", "old.csv"], ["old.csv", "another version", "without the column cpu_experts", "a new name"]),
        (["--out", "folder.csv"], ["folder.csv", "directory"]),
        (["missing.jsonl"], ["missing.jsonl", "No such file"]),
    ],
)
def test_wrong_values_are_told_before_any_work(
    trace: Path,
    options: list[str],
    words: list[str],
    ran: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trace.parent)
    Path("other.csv").write_text("a,b\n1,2\n")
    known = [name for name in IDENTITY if name != "cpu_experts"]
    Path("old.csv").write_text(",".join(known) + "\n" + ",".join("1" for _ in known) + "\n")
    Path("folder.csv").mkdir()
    before = sorted(Path().iterdir())
    first = [] if options[0].startswith("--") else [options.pop(0)]
    words_given = with_defaults(("--out", "out.csv", "--jobs", "1"), options)
    assert main(["sweep", *first, str(trace), *words_given]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert sorted(Path().iterdir()) == before and ran == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": []},
        {"slots": ["4"]},
        {"cache": "0.5"},
        {"jobs": 1.5},
        {"cutoff": True},
        {"policies": []},
        {"vram": {}},
    ],
)
def test_wrong_arguments_from_python(trace: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        sim.sweep(trace, **wrong)  # type: ignore[arg-type]


def test_parquet_without_pyarrow(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(command(trace, tmp_path / "out.parquet", "--slots", "4")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'spmoe[parquet]'" in said and ".csv" in said


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_the_table_never_replaces_a_trace(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "table.csv"
    link.symlink_to(trace)
    assert main(command(trace, link, "--slots", "4")) == 2
    assert "a file of its own" in capsys.readouterr().err
