"""What a user meets on the command line: text, summary, files, signals, and how little `--help` needs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main
from engine.checkpoints.bundled import ABOUT, EXAMPLE, bundled_pair
from engine.checkpoints.tokenizer_files import load_tokenizer
from engine.cli.parser import parser
from engine.cli.run import _print
from engine.engine import Engine
from engine.generation import Piece
from spmoe.cli import printable
from spmoe.policy.registry import RECIPES
from spmoe.trace.reader import TraceFile
from tests.paths import DOCS, ROOT

Out = pytest.CaptureFixture[str]

LABELS = [
    "policy",
    "model",
    "cache",
    "times",
    "tokens",
    "output",
    "rounds",
    "TTFT",
    "TPOT",
    "experts",
    "moved",
    "decode",
]
"""Of the summary's lines."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the models."""
    target, draft = write_random_pair(tmp_path_factory.mktemp("pair"))
    return ["--model", str(target), "--draft", str(draft)]


def ours() -> list[str]:
    """The engine's threads that still run."""
    return [each.name for each in threading.enumerate() if each.name.startswith("spmoe")]


def test_without_options_the_shipped_pair_runs(capfd: Out) -> None:
    assert main(["run", "--max-new-tokens", "12"]) == 0
    text, said = capfd.readouterr()
    # What it goes on from stands before what it writes, as nobody else has.
    assert text.startswith(EXAMPLE) and len(text) > len(EXAMPLE) + 12 and text.endswith("\n")
    first, *rest = said.splitlines()
    assert first == f"note: no --model, so the bundled pair runs: {ABOUT}"
    assert [label for line in rest if (label := line[:8].strip())] == LABELS
    assert not ours()


def test_a_prompt_for_the_shipped_pair(capfd: Out) -> None:
    assert main(["run", "--prompt", "import os\n", "--max-new-tokens", "12"]) == 0
    with Engine.from_pretrained(*bundled_pair(), device="cpu") as engine:
        expected = engine.generate("import os\n", 12).text
    text, said = capfd.readouterr()
    assert text == expected + "\n" and said.count("note: ") == 1


def test_text_is_what_the_api_gives(pair: list[str], capsys: Out) -> None:
    assert main(["run", *pair, "--prompt", "One", "Two", "--max-new-tokens", "9", "--ignore-eos"]) == 0
    text, said = capsys.readouterr()
    with Engine.from_pretrained(pair[1], pair[3], device="cpu") as engine:
        one, two = (engine.generate(prompt, 9, ignore_eos=True).text for prompt in ("One", "Two"))
    assert text == f"{one}\n\n{two}\n"
    assert "note: prompt 1 of 2: One\n" in said and "note: prompt 2 of 2: Two\n" in said
    assert "18 tokens for 2 prompts" in said


def test_everything_at_once(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    files = {name: str(tmp_path / name) for name in ("stats.json", "run.log", "timeline.json", "record.jsonl.gz")}
    stats, log, timeline, record = files.values()
    words = ["run", *pair, "--prompt", "Once", "upon", "--max-new-tokens", "10", "--temperature", "0.8", "--seed", "3"]
    words += ["--policy", "spmoe.paper", "--gamma", "3", "--cutoff", "2", "--slots", "12", "--dtype", "float64"]
    words += ["--layer-map", "0,1,1,3", "--host-memory", "1GiB", "--context", "100", "--link-gbps", "5"]
    words += ["--stats", stats, "--log", log, "--timeline", timeline, "--record", record]
    assert main(words) == 0
    first = capsys.readouterr().out
    found = json.loads(Path(stats).read_text("utf-8"))
    assert found["config"]["slots"] == 12 and found["config"]["engine"]["link_gbps"] == 5
    assert found["config"]["cutoff"] == {"choice": "given", "layers": {"spmoe.paper": 2}}
    assert TraceFile(record).header.tokens == found["results"][0]["tokens"]
    assert json.loads(Path(timeline).read_text("utf-8"))
    assert main(["verify-log", log]) == 0
    assert "under spmoe.paper" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert main(words) == 0
    assert capsys.readouterr().out == first  # the same seed


def test_results_on_standard_output_leave_it_to_them(pair: list[str], capsys: Out) -> None:
    assert main(["run", *pair, "--prompt", "Hi", "--max-new-tokens", "5", "--stats", "-"]) == 0
    text, said = capsys.readouterr()
    assert json.loads(text)["schema"] == "spmoe-result/1"
    assert "policy  spmoe.foresight: " in said


def test_a_fallback_is_said_once(pair: list[str], capsys: Out) -> None:
    assert main(["run", *pair[:2], "--prompt", "Hi", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().err.count("stands in for") == 1


def test_a_clairvoyant_run_knows_the_very_same_run(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    record, log = str(tmp_path / "record.jsonl"), str(tmp_path / "run.log")
    words = ["run", *pair, "--max-new-tokens", "12", "--ignore-eos", "--prompt"]
    # Its windows are those to come: as long, and so with the same rejected tokens.
    assert main([*words, "Once upon", "--policy", "on-demand.lru", "--record", record]) == 0
    knowing = [*words[:-1], "--policy", "clairvoyant", "--earlier", record]
    assert main([*knowing, "--log", log, "--prompt", "Once upon"]) == 0
    assert main(["verify-log", log, "--earlier", record]) == 0
    capsys.readouterr()
    assert main(["verify-log", log]) == 2
    assert "needs the future: the trace of an earlier run" in capsys.readouterr().err
    for other in (["--prompt", "Quite another"], ["--prompt", "Once upon", "Once upon"]):
        assert main([*knowing, *other]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {record}: layer 0 needs expert ") and "the very same run" in said
        assert not ours()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain \u00e9\u4e2d\u3000\U0001f600\n\t", "plain \u00e9\u4e2d\u3000\U0001f600\n\t"),
        ("\x1b[2J\x07\x00", "\\x1b[2J\\x07\\x00"),
        ("\r\x7f\x9b1m", "\\r\\x7f\\x9b1m"),
        ("a\u202eb\u2066c\ud800", "a\\u202eb\\u2066c\\ud800"),
        ("\u200d\u200c\u00ad\u2028", "\u200d\u200c\u00ad\u2028"),  # joiners and the like are part of texts
    ],
)
def test_nothing_that_a_terminal_obeys_reaches_it(raw: str, shown: str) -> None:
    assert printable(raw, keep="\n\t") == shown
    out = TextIOWrapper(BytesIO(), "utf-8", newline="")
    _print([Piece((1,), raw)], out)
    out.seek(0)
    assert out.read() == shown + "\n"


def test_where_output_has_no_characters_for_a_text_it_gets_escapes() -> None:
    out = TextIOWrapper(BytesIO(), "ascii", newline="")
    _print([Piece((1,), "caf\u00e9 \u4e2d")], out)
    out.seek(0)
    assert out.read() == "caf\\xe9 \\u4e2d\n"


def test_an_error_stays_one_line_whatever_a_file_is_called(capsys: Out) -> None:
    assert main(["verify-log", "two\nlines\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "two\\nlines\\x1b[31m" in said


def test_a_chat_template_wraps_the_prompt(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    tokenizer = load_tokenizer(pair[1])
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    chat = tmp_path / "chat"
    chat.mkdir()
    for file in Path(pair[1]).iterdir():
        (chat / file.name).symlink_to(file)
    for file in chat.glob("token*"):
        file.unlink()
    tokenizer.save_pretrained(chat)
    words = ["--max-new-tokens", "6", "--ignore-eos"]
    assert main(["run", "--model", str(chat), "--prompt", "Hi", "--chat", *words]) == 0
    wrapped = capsys.readouterr().out
    with Engine.from_pretrained(chat, device="cpu") as engine:
        ids = tokenizer("[Hi]", add_special_tokens=False)["input_ids"]  # The template says all that there is.
        assert engine.generate(ids, 6, ignore_eos=True).text + "\n" == wrapped
    assert main(["run", *pair, "--prompt", "Hi", "--chat", *words]) == 2
    assert "no chat template" in capsys.readouterr().err


WITHOUT_TORCH = """
import contextlib, io, json, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors", "tokenizers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
from engine.__main__ import main
def run(words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    return status, out.getvalue(), error.getvalue()
print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))
"""
NEED_TORCH: list[tuple[list[str], int, str, str]] = [
    (["--help"], 0, "verify-log", ""),
    (["run", "--help"], 0, "--virtual-time", ""),
    (["run"], 2, "", "error: run needs PyTorch and transformers: pip install 'spmoe[engine]' (No module"),
    (["record", "--help"], 0, "--prompts", ""),
    (["record", "--prompts", "x.txt", "--out", "x.jsonl"], 2, "", "error: record needs PyTorch and transformers"),
    (["run", "--gamma", "x"], 2, "", "error: argument --gamma"),
    (["verify-log", "missing.log"], 2, "", "error: missing.log: cannot be read"),
]


def test_only_run_and_record_need_torch() -> None:
    commands = json.dumps([words for words, *_ in NEED_TORCH])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, commands], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for (words, *expected), found in zip(NEED_TORCH, json.loads(done.stdout), strict=True):
        status, out, error = expected
        assert found[0] == status and out in found[1] and found[2].startswith(error), words
        assert found[2].count("\n") == (status != 0), words


def started(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "run", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("stop", "said", "slow"),
    [
        (signal.SIGINT, b"interrupted\n", ()),
        # A link of one byte per second: the first prompt waits for its first expert.
        (signal.SIGTERM, b"stopped by SIGTERM\n", ("--link-gbps", "1e-9")),
    ],
)
def test_a_stopped_run_leaves_nothing_behind(
    pair: list[str], tmp_path: Path, stop: signal.Signals, said: bytes, slow: tuple[str, ...]
) -> None:
    names = ("stats", "log", "timeline", "record")
    files = [word for name in names for word in (f"--{name}", str(tmp_path / f"{name}.json"))]
    endless = ("--prompt", "One", "Two", "--ignore-eos", "--max-new-tokens", "4000")
    run = started(*pair, *files, *slow, *endless, folder=tmp_path)
    assert run.stdout is not None and run.stderr is not None
    assert run.stderr.readline() == b"note: prompt 1 of 2: One\n"  # All is loaded.
    if not slow:
        assert run.stdout.read(1)  # It is decoding.
    run.send_signal(stop)
    _, error = run.communicate(timeout=60)
    assert (run.returncode, error) == (128 + stop, said)
    assert not list(tmp_path.glob("spmoe-*")) and not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.json"))


def test_a_reader_that_goes_away_is_no_error(pair: list[str], tmp_path: Path) -> None:
    # Long enough that the reader is gone by then.
    long = ("--prompt", "The quick brown fox", "--ignore-eos", "--max-new-tokens", "200")
    run = started(*pair, *long, "--log", str(tmp_path / "log"), folder=tmp_path)
    assert run.stdout is not None
    assert run.stdout.read(1)
    run.stdout.close()
    run.stdout = None
    _, error = run.communicate(timeout=60)
    assert (run.returncode, error) == (0, b"")
    assert not list(tmp_path.glob("*log*"))


def section(start: str, end: str) -> str:
    """What stands between two marks of the README."""
    readme = (ROOT / "README.md").read_text("utf-8")
    return readme[readme.index(start) + len(start) : readme.index(end, readme.index(start))]


def test_the_readme_shows_what_a_run_says(capfd: Out) -> None:
    shown = section("<!-- engine run -->\n```text\n", "```\n<!-- end of engine run -->")
    command, _, output = shown.partition("\n")
    assert main(shlex.split(command.removeprefix("$ python -m engine"))) == 0
    text, said = capfd.readouterr()
    labels = [*LABELS, "plain"]
    notes, lines = parts(said)
    pasted_notes, pasted = parts(output)
    assert pasted_notes == notes and output.removeprefix("".join(notes)).startswith(text[:20])
    # What is before the summary is text, of which rounding may make another one elsewhere.
    pasted = pasted[max(number for number, line in enumerate(pasted) if line.startswith("policy")) :]
    for each in (pasted, lines):
        assert [label for line in each if (label := line[:8].strip())] == labels
    settled = ("policy", "model", "cache", "times", "output", "plain")  # The others depend on the machine.
    assert [line for line in pasted if line.startswith(settled)] == [line for line in lines if line.startswith(settled)]


def parts(said: str) -> tuple[list[str], list[str]]:
    """The notes that it begins with, and the lines behind them."""
    lines = said.splitlines(keepends=True)
    notes = [line for line in lines if line.startswith("note: ")]
    return notes, lines[len(notes) :]


def test_the_example_in_the_readme_runs(pair: list[str], capsys: Out) -> None:
    (example,) = section("## Engine", "\n## ").split("```python\n")[1:]
    code = example[: example.index("```")].replace("path/to/target", pair[1]).replace("path/to/draft", pair[3])
    assert pair[1] in code and pair[3] in code
    exec(compile(code, "README.md", "exec"), {})
    text, _, numbers = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    tpot, acceptance = map(float, numbers.split())
    assert text and tpot > 0 and 0 <= acceptance <= 1


@pytest.mark.parametrize(
    ("commands", "begin", "end"),
    [
        (("run",), "## Options of `run`", "## Drafting"),
        (("record",), "## Options of `record`", "## Measuring"),
        (("profile", "measure"), "## Measuring", "## Checkpoints with sums"),
    ],
)
def test_the_page_tables_every_option(commands: tuple[str, ...], begin: str, end: str) -> None:
    page = (DOCS / "engine.md").read_text("utf-8")
    table = page[page.index(begin) : page.index(end)]
    (found,) = [each.choices for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    actions = [action for command in commands for action in found[command]._actions]
    options = {name for action in actions for name in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"`(--[a-z-]+)", table)) == options


def test_the_page_tables_every_line_of_the_summary() -> None:
    page = (DOCS / "engine.md").read_text("utf-8")
    table = page[page.index("## The summary") : page.index("## Virtual time")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == [*LABELS, "plain"]


def test_the_page_tables_the_policies_that_need_an_earlier_run() -> None:
    page = (DOCS / "engine.md").read_text("utf-8")
    table = page[page.index("## Policies that need") : page.index("## Fallbacks")]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.M) for name in re.findall(r"`(.*?)`", row)}
    assert named == {each.name for each in RECIPES.values() if each.needs & {"popularity", "hindsight", "future"}}


def test_without_experts_on_the_cpu(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    stats = tmp_path / "stats.json"
    command = ["run", *pair, "--prompt", "One", "--max-new-tokens", "6", "--no-cpu-experts"]
    assert main([*command, "--policy", "spmoe.foresight.split", "--stats", str(stats)]) == 0
    (row,) = json.loads(stats.read_text("utf-8"))["results"]
    assert row["fetch_only"] and not row["host_per_token"]
    capsys.readouterr()
    assert main([*command, "--policy", "fiddler.spec"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "fiddler.spec: needs the CPU, and --no-cpu-experts (cpu_experts=False) turns it off" in said
