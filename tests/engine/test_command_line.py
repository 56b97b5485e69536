"""What a user meets on the command line: text, summary, files, signals, and how little `--help` needs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.commands import parser
from engine.engine import Engine, Piece
from engine.loader import load_tokenizer
from engine.running import _print
from engine.tinypair import write_random_pair
from spmoe.cli import printable
from spmoe.policy.registry import RECIPES
from spmoe.trace.reader import TraceFile

ROOT = Path(__file__).resolve().parents[2]
Out = pytest.CaptureFixture[str]

LABELS = ["policy", "model", "cache", "times", "output", "rounds", "TTFT", "TPOT", "experts", "moved", "decode"]
"""Of the summary's lines."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the models."""
    target, draft = write_random_pair(tmp_path_factory.mktemp("pair"))
    return ["--model", str(target), "--draft", str(draft)]


def ours() -> list[str]:
    """The engine's threads that still run."""
    return [each.name for each in threading.enumerate() if each.name.startswith("spmoe")]


def test_without_options_a_random_pair_runs(capfd: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["run", "--max-new-tokens", "12"]) == 0
    text, said = capfd.readouterr()
    assert text.endswith("\n") and len(text) > 1
    first, *rest = said.splitlines()
    assert first == "note: no --model, so a tiny pair with random weights runs; its text means nothing"
    assert [line[:8].strip() for line in rest] == LABELS
    assert not list(tmp_path.glob("spmoe-*")) and not ours()


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
    assert "policy  spmoe.per-layer" in said


def test_a_fallback_is_said_once(pair: list[str], capsys: Out) -> None:
    assert main(["run", *pair[:2], "--prompt", "Hi", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().err.count("stands in for") == 1


def test_a_clairvoyant_run_knows_the_very_same_run(pair: list[str], tmp_path: Path, capsys: Out) -> None:
    record, log = str(tmp_path / "record.jsonl"), str(tmp_path / "run.log")
    words = ["run", *pair, "--max-new-tokens", "12", "--ignore-eos", "--prompt"]
    assert main([*words, "Once upon", "--record", record]) == 0
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
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors", "tokenizers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
from engine.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "status", "out", "error"),
    [
        (["--help"], 0, "verify-log", ""),
        (["run", "--help"], 0, "--virtual-time", ""),
        (["run"], 2, "", "error: run needs PyTorch and transformers: pip install 'spmoe[engine]' (No module"),
        (["run", "--gamma", "x"], 2, "", "error: argument --gamma"),
        (["verify-log", "missing.log"], 2, "", "error: missing.log: cannot be read"),
    ],
)
def test_only_run_needs_torch(words: list[str], status: int, out: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and out in done.stdout and done.stderr.startswith(error)
    assert done.stderr.count("\n") == (status != 0)


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
        # A link of one byte per second: the prompt waits for its first expert.
        (signal.SIGTERM, b"stopped by SIGTERM\n", ("--link-gbps", "1e-9")),
    ],
)
def test_a_stopped_run_leaves_nothing_behind(
    tmp_path: Path, stop: signal.Signals, said: bytes, slow: tuple[str, ...]
) -> None:
    names = ("stats", "log", "timeline", "record")
    files = [word for name in names for word in (f"--{name}", str(tmp_path / f"{name}.json"))]
    run = started(*files, *slow, "--ignore-eos", "--max-new-tokens", "4000", folder=tmp_path)
    assert run.stdout is not None and run.stderr is not None
    assert run.stderr.readline().startswith(b"note: no --model")  # All is loaded.
    if not slow:
        assert run.stdout.read(1)  # It is decoding.
    run.send_signal(stop)
    _, error = run.communicate(timeout=60)
    assert (run.returncode, error) == (128 + stop, said)
    assert not list(tmp_path.glob("spmoe-*")) and not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.json"))


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    run = started("--ignore-eos", "--max-new-tokens", "4000", "--log", str(tmp_path / "log"), folder=tmp_path)
    assert run.stdout is not None
    assert run.stdout.read(1)
    run.stdout.close()
    run.stdout = None
    _, error = run.communicate(timeout=60)
    assert run.returncode == 0 and error.count(b"\n") == 1  # the note
    assert not list(tmp_path.glob("*log*"))


def section(start: str, end: str) -> str:
    """What stands between two marks of the README."""
    readme = (ROOT / "README.md").read_text("utf-8")
    return readme[readme.index(start) + len(start) : readme.index(end, readme.index(start))]


def test_the_readme_shows_what_a_run_says(capfd: Out) -> None:
    shown = section("<!-- engine run -->\n```text\n", "```\n<!-- end of engine run -->").splitlines()
    assert main(shown[0].removeprefix("$ python -m engine").split()) == 0
    text, said = capfd.readouterr()
    note, *lines = said.splitlines()
    assert shown[1] == note
    printed = text.splitlines()
    assert len(shown[2 : -len(LABELS)]) == len(printed)
    pasted = shown[-len(LABELS) :]
    assert [line[:8] for line in pasted] == [line[:8] for line in lines]
    settled = ("policy", "model", "cache", "times", "output")  # The others depend on the machine.
    assert [line for line in pasted if line.startswith(settled)] == [line for line in lines if line.startswith(settled)]


def test_the_example_in_the_readme_runs(pair: list[str], capsys: Out) -> None:
    (example,) = section("## Engine", "## Bringing").split("```python\n")[1:]
    code = example[: example.index("```")].replace("path/to/target", pair[1]).replace("path/to/draft", pair[3])
    assert pair[1] in code and pair[3] in code
    exec(compile(code, "README.md", "exec"), {})
    text, _, numbers = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    tpot, acceptance = map(float, numbers.split())
    assert text and tpot > 0 and 0 <= acceptance <= 1


def test_the_page_tables_every_option() -> None:
    page = (ROOT / "docs" / "engine.md").read_text("utf-8")
    table = page[page.index("## Options of `run`") : page.index("## Text")]
    (run,) = [each.choices["run"] for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    options = {name for action in run._actions for name in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"`(--[a-z-]+)", table)) == options


def test_the_page_tables_every_line_of_the_summary() -> None:
    page = (ROOT / "docs" / "engine.md").read_text("utf-8")
    table = page[page.index("## The summary") : page.index("## Virtual time")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == LABELS


def test_the_page_tables_the_policies_that_need_an_earlier_run() -> None:
    page = (ROOT / "docs" / "engine.md").read_text("utf-8")
    table = page[page.index("## Policies that need") : page.index("## Fallbacks")]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.M) for name in re.findall(r"`(.*?)`", row)}
    assert named == {each.name for each in RECIPES.values() if each.needs & {"popularity", "hindsight", "future"}}
