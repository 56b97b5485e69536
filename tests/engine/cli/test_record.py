"""`python -m engine record`: the trace that it writes, how, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from benchmarks.engine.random_pair import PairShape, write_random_pair
from engine.__main__ import main
from engine.cli.inputs import Models
from engine.cli.parser import parser
from engine.cli.prompts import number_prompts
from engine.cli.record import _plan
from engine.decoding.request import Request
from engine.decoding.target_model import TargetModel
from sim.__main__ import main as simulator
from spmoe.cli import Stopped
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TokenLine
from tests.paths import ROOT
from tests.words import with_defaults

pytestmark = pytest.mark.usefixtures("no_network")

Out = pytest.CaptureFixture[str]
TEXTS = ("Once upon a time", "def main():", "1 2 3", "Hi")
NEW = ("--max-new-tokens", "10", "--ignore-eos")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(*write_random_pair(tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="module")
def pair(folders: Models) -> list[str]:
    """The options that name the models."""
    return ["--model", str(folders.target), "--draft", str(folders.draft)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def record(*words: object) -> int:
    return main(["record", *map(str, words)])


def tokens_of(path: Path) -> list[TokenLine]:
    return [line for line in TraceFile(path) if isinstance(line, TokenLine)]


def test_it_writes_what_a_run_under_any_policy_would(
    pair: list[str], prompts: Path, tmp_path: Path, capsys: Out
) -> None:
    """Where experts are makes no difference to tokens, routing and forecasts."""
    out, other = tmp_path / "out.jsonl.gz", tmp_path / "run.jsonl"
    assert record("--prompts", prompts, "--out", out, *pair, "--gamma", 3, *NEW) == 0
    text, said = capsys.readouterr()
    assert text.startswith(f"{out}: 36 tokens behind 4 prompts; ") and text.endswith(
        "% of drafted tokens were accepted\n"
    )
    assert said == ""
    words = ["run", *pair, "--prompt", *TEXTS, "--gamma", "3", *NEW, "--cache", "0.5", "--record", str(other)]
    assert main(words) == 0
    recorded, ran = TraceFile(out), TraceFile(other)
    assert list(recorded) == list(ran)
    ours, theirs = recorded.header, ran.header
    assert ours.source.how == "engine record, gamma 3, greedy, 4 prompts of prompts.txt"
    assert theirs.source.how == "engine run under spmoe.foresight, gamma 3"
    assert (ours.tokens, ours.model, ours.draft, ours.context) == (36, theirs.model, theirs.draft, theirs.context)
    assert ours.forecasts == theirs.forecasts and ours.context == len(TEXTS[0]) + 1 + 10


def test_forecasts_are_recorded_where_no_policy_would_ask_for_them(
    pair: list[str], prompts: Path, tmp_path: Path
) -> None:
    """All experts are resident."""
    out = tmp_path / "out.jsonl"
    assert record("--prompts", prompts, "--out", out, *pair, *NEW) == 0
    lines = tokens_of(out)
    rejected = [each for line in lines for each in line.rejected]
    assert len(lines) == 36 and rejected
    for line in lines:
        assert line.draft_prob is not None and line.weights is not None
        assert [len(each) for each in line.forecasts["draft"]] == [2, 2, 2, 2]
        assert [len(each) for each in line.forecasts["next_gate"]] == [0, 2, 2, 2]
    for each in rejected:
        assert each.weights is not None and len(each.forecasts["next_gate"]) == 4
    assert {line.agree for line in lines} == {True, False}


def test_the_simulator_checks_and_replays_it(pair: list[str], prompts: Path, tmp_path: Path, capsys: Out) -> None:
    out = str(tmp_path / "out.jsonl")
    assert record("--prompts", prompts, "--out", out, *pair, *NEW) == 0
    assert simulator(["check", out]) == 0
    assert "4 prompts of prompts.txt" in capsys.readouterr().out
    assert simulator(["replay", out, "--policy", "spmoe.paper", "next-gate", "--cache", "0.5"]) == 0


def test_names_that_no_terminal_can_show(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    """They are shown, and noted in the trace, with escapes: a long recording must not end on them."""
    source, out = tmp_path / os.fsdecode(b"a\x1b\xff.txt"), tmp_path / os.fsdecode(b"o\x1b\xff.jsonl")
    try:
        source.write_text("Hi\n")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system knows no such names")
    assert record("--prompts", source, "--out", out, *pair, *NEW) == 0
    assert "\no\\x1b\\udcff.jsonl: 9 tokens behind 1 prompt; " in capsys.readouterr().out.replace(f"{tmp_path}/", "\n")
    assert (TraceFile(out).header.source.how or "").endswith(", 1 prompt of a\\x1b\\udcff.txt")


def test_json_prompts_keep_their_lines(pair: list[str], prompts: Path, tmp_path: Path) -> None:
    same = tmp_path / "prompts.jsonl"
    same.write_text("\n".join(json.dumps({"prompt": text, "id": 1}) for text in TEXTS))
    for source, out in ((prompts, "a.jsonl"), (same, "b.jsonl")):
        assert record("--prompts", source, "--out", tmp_path / out, *pair, *NEW) == 0
    assert list(TraceFile(tmp_path / "a.jsonl")) == list(TraceFile(tmp_path / "b.jsonl"))


def test_a_seed_gives_every_prompt_draws_of_its_own(pair: list[str], tmp_path: Path) -> None:
    twice = tmp_path / "twice.txt"
    twice.write_text("Hi\nHi\n")
    outs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for out, seed in zip(outs, (5, 5, 2**63 - 1), strict=True):
        assert record("--prompts", twice, "--out", out, *pair, *NEW, "--temperature", 0.8, "--seed", seed) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    header = TraceFile(outs[0]).header
    assert header.source.how == "engine record, gamma 4, temperature 0.8, seed 5, 2 prompts of twice.txt"
    lines = tokens_of(outs[0])
    first, second = ([line.routed for line in lines if line.request == request] for request in (0, 1))
    assert first != second


def plan_slots(folders: Models, *words: str) -> int:
    options = parser().parse_args(["record", "--prompts", "p.txt", "--out", "o.jsonl", "--device", "cpu", *words])
    return _plan(folders, number_prompts(TEXTS), options)[1].setting.slots


def test_everything_is_resident_where_it_fits(folders: Models) -> None:
    assert plan_slots(folders) == 32
    assert plan_slots(folders, "--slots", "9") == 9
    assert plan_slots(folders, "--cache", "0.25") == 8
    assert plan_slots(folders, "--host-memory", "1.6MiB") == 32
    assert plan_slots(folders, "--host-memory", "1.4MiB") == 16


def test_without_a_draft(pair: list[str], prompts: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out.jsonl"
    assert record("--prompts", prompts, "--out", out, *pair[:2], *NEW) == 0
    assert capsys.readouterr() == (f"{out}: 36 tokens behind 4 prompts\n", "")
    header = TraceFile(out).header
    assert header.draft is None and set(header.forecasts) == {"next_gate"}
    assert header.source.how.endswith("; there was no draft: agree is false throughout")
    assert not any(line.agree for line in tokens_of(out))


def test_a_draft_of_another_shape_foretells_nothing_and_that_is_said(
    folders: Models, prompts: Path, tmp_path: Path, capsys: Out
) -> None:
    _, narrow = write_random_pair(tmp_path / "narrow", PairShape(hidden=32))
    _, deep = write_random_pair(tmp_path / "deep", PairShape(layers=6))
    out = tmp_path / "out.jsonl"
    words = ["--prompts", prompts, "--out", out, "--model", folders.target, *NEW, "--draft"]
    for draft in (narrow, deep):
        assert record(*words, draft) == 0
        assert "note: the trace has no draft forecasts" in capsys.readouterr().err
        assert set(TraceFile(out).header.forecasts) == {"next_gate"}
    assert record(*words, deep, "--layer-map", "0,2,3,5") == 0
    assert capsys.readouterr().err == ""
    assert set(TraceFile(out).header.forecasts) == {"draft", "next_gate"}


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("Hi\n\n" + "x" * 4090 + "\n", (), ["p.txt:3: ", "positions for 4096 tokens", "got 4101"]),
        ("Hi\n" + "x" * 90 + "\n", ("--context", "50"), ["p.txt:2: context: room is reckoned for 50", "got 91"]),
        ("Hi\n", ("--max-new-tokens", "1"), ["--out: the first token belongs to the prompt", "at least 2"]),
        ("\n", (), ["p.txt: expected at least one prompt"]),
        ("Hi\n", ("--out", "nowhere/x.jsonl"), ["nowhere/x.jsonl: cannot be written"]),
        ("Hi\n", ("--out", "p.txt"), ["p.txt: expected a file of its own for out"]),
        ("Hi\n", ("--out", "-"), ["--out: expected a file, got -"]),
        ("Hi\n", ("--prompts", "-"), ["--prompts: expected a file, got -"]),
        ("Hi\n", ("--prompts", "missing.txt"), ["missing.txt: cannot be read"]),
        ("Hi\n", ("--chat",), ["--chat: the tokenizer has no chat template"]),
        ("Hi\n", ("--gamma", "-1"), ["gamma"]),
        ("Hi\n", ("--slots", "3"), ["at least 4 slots"]),
        ("Hi\n", ("--policy", "next-gate"), ["--policy"]),
    ],
)
def test_one_line_says_what_is_wrong(
    pair: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Out,
    content: str,
    words: tuple[str, ...],
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(content)
    usual = ("--prompts", "p.txt", "--out", "o.jsonl", *pair, "--max-new-tokens", "10")
    assert record(*with_defaults(usual, words), "--ignore-eos") == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1
    for part in said:
        assert part in error
    assert [each.name for each in tmp_path.iterdir()] == ["p.txt"]


def test_a_draft_needs_a_model(prompts: Path, tmp_path: Path, pair: list[str], capsys: Out) -> None:
    assert record("--prompts", prompts, "--out", tmp_path / "o.jsonl", *pair[2:]) == 2
    assert capsys.readouterr().err == "error: --draft: expected --model too\n"


def test_requests_that_all_end_at_once_leave_nothing_to_record(folders: Models, tmp_path: Path, capsys: Out) -> None:
    ended = tmp_path / "ended"
    shutil.copytree(folders.target, ended)
    (ended / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(259))}))
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("Hi\n")
    said = "nothing to record: no token was decoded behind the first"
    assert record("--prompts", prompts, "--out", out, "--model", ended) == 2
    assert said in capsys.readouterr().err
    assert main(["run", "--model", str(ended), "--prompt", "Hi", "--record", str(out)]) == 2
    assert said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [(KeyboardInterrupt(), 130, "interrupted\n"), (Stopped(15), 143, "stopped by SIGTERM\n")],
)
def test_what_is_interrupted_keeps_the_last_trace_and_leaves_nothing_else(
    pair: list[str],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Out,
    stop: BaseException,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = tmp_path / "out.jsonl"
    out.write_text("an older one")
    start, calls = TargetModel.start_prompt, iter(range(9))

    def third_fails(self: TargetModel, request: Request) -> None:
        if next(calls) == 2:
            raise stop
        start(self, request)

    monkeypatch.setattr(TargetModel, "start_prompt", third_fails)
    assert record("--prompts", prompts, "--out", out, *pair, *NEW) == status
    assert capsys.readouterr() == ("", said)
    assert out.read_text() == "an older one" and sorted(tmp_path.iterdir()) == [out, prompts]
    assert not [each.name for each in threading.enumerate() if each.name.startswith("spmoe")]


def test_a_terminal_shows_how_far_it_is(pair: list[str], prompts: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["record", "--prompts", str(prompts), "--out", str(tmp_path / "o.jsonl"), *pair, *NEW]
    done = subprocess.run(
        [sys.executable, "-m", "engine", *words],
        cwd=ROOT,
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"},
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "4/4 prompts" in shown and "36 tokens recorded" in shown
    assert done.stdout.decode().count("\n") == 1
