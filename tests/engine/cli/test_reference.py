"""The engine's output beside that of plain transformers: what counts as the same, and what is told of a difference."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main
from engine.cli import reference as plain
from engine.cli.reference import Comparison, Difference, Request, check_comparable, compare
from engine.decoding.sampling import Sampling
from engine.engine import Engine
from engine.options import Options
from engine.plan import Plan, make_plan
from spmoe.errors import InputError

pytestmark = pytest.mark.usefixtures("no_network")

Out = pytest.CaptureFixture[str]
NEW = 12
PROMPTS = ([256, *b"Hello"], [256, *b"def main():\n"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


def plan_of(pair: tuple[Path, Path], **options: object) -> Plan:
    return make_plan(*pair, Options(device="cpu", dtype="float64", **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan(pair: tuple[Path, Path]) -> Plan:
    return plan_of(pair)


@pytest.fixture(scope="module")
def right(plan: Plan) -> list[Request]:
    with Engine(plan) as engine:
        return [Request(prompt, engine.generate(prompt, NEW, ignore_eos=True).tokens) for prompt in PROMPTS]


def test_the_same(plan: Plan, right: list[Request]) -> None:
    found = compare(plan, right, NEW, frozenset())
    assert found == Comparison(2, 2 * NEW, ())
    assert found.explain() == "the same 24 tokens for 2 prompts from plain transformers"
    assert compare(plan, right[:1], NEW, frozenset()).explain() == "the same 12 tokens from plain transformers"
    assert found.to_json() == {"requests": 2, "tokens": 24, "differences": []}


def spoilt(request: Request, place: int) -> Request:
    """With another token there; what follows does not fit, either."""
    output = list(request.output)
    output[place:] = [(token + 1) % 256 for token in output[place:]]
    return Request(request.prompt, output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("place", [0, 5, NEW - 1])
def test_another_token_is_an_error(plan: Plan, right: list[Request], dtype: torch.dtype, place: int) -> None:
    wrong = [right[0], spoilt(right[1], place)]
    with pytest.raises(InputError, match=rf"^prompt 2: differs .* from token {place + 1} on, and not by rounding: "):
        compare(replace(plan, dtype=dtype), wrong, NEW, frozenset())


def test_in_16_bits_it_is_told(plan: Plan, right: list[Request]) -> None:
    found = compare(replace(plan, dtype=torch.bfloat16), [spoilt(right[0], 3)], NEW, frozenset())
    (difference,) = found.differences
    assert difference.request == 1 and difference.token <= 4 and 0 < difference.gap < math.inf
    assert found.explain().startswith(
        f"differs from token {difference.token} on: there plain's logits of the two tokens"
    )


def logits_apart(plan: Plan, request: Request, place: int) -> float:
    """By how much the logit of the output's token there is below the best, by a forward pass of all before."""
    folder = plan.blueprint.checkpoint.folder
    model = plain.load_whole(folder, torch.float64, torch.device("cpu"), "eager")
    text = torch.tensor([[*request.prompt, *request.output[:place]]])
    with torch.inference_mode():
        logits = model(input_ids=text).logits[0, -1]
    return float(logits.max() - logits[request.output[place]])


def test_a_gap_of_rounding_is_no_error(plan: Plan, right: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [spoilt(right[0], 4), spoilt(right[1], 7)]
    gaps = [logits_apart(plan, request, place) for request, place in zip(wrong, (4, 7), strict=True)]
    monkeypatch.setattr(plain, "ROUNDING", {torch.float64: max(gaps) * 1.001})
    found = compare(plan, wrong, NEW, frozenset())
    assert [(each.request, each.token) for each in found.differences] == [(1, 5), (2, 8)]
    assert [each.gap for each in found.differences] == pytest.approx(gaps, rel=1e-5)
    assert "widest in 2 prompts" in found.explain() and "token " in found.explain()
    monkeypatch.setattr(plain, "ROUNDING", {torch.float64: max(gaps) * 0.999})
    with pytest.raises(InputError, match="not by rounding"):
        compare(plan, wrong, NEW, frozenset())


@pytest.mark.parametrize("change", [lambda output: output[:-1], lambda output: [*output, output[0]]])
def test_more_or_fewer_tokens_are_an_error_in_any_format(plan: Plan, right: list[Request], change: object) -> None:
    wrong = Request(right[0].prompt, change(list(right[0].output)))  # type: ignore[operator]
    for dtype in (torch.float64, torch.bfloat16):
        expected = right[0] if dtype is torch.float64 else in_bfloat16(plan, right[0].prompt)
        wrong = Request(wrong.prompt, change(list(expected.output)))  # type: ignore[operator]
        with pytest.raises(InputError, match="not by rounding: there one of the two ends"):
            compare(replace(plan, dtype=dtype), [wrong], NEW, frozenset())


def in_bfloat16(plan: Plan, prompt: Sequence[int]) -> Request:
    model = plain.load_whole(plan.blueprint.checkpoint.folder, torch.bfloat16, torch.device("cpu"), "eager")
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([list(prompt)]), max_new_tokens=NEW, do_sample=False)
    return Request(prompt, output[0, len(prompt) :].tolist())


def test_ends_count_as_in_the_engine(plan: Plan, right: list[Request]) -> None:
    output = list(right[0].output)
    fresh = next(place for place in range(3, NEW) if output[place] not in output[:place])
    ends = frozenset({output[fresh], 7})
    short = Request(right[0].prompt, output[: fresh + 1])
    assert compare(plan, [short], NEW, ends).differences == ()
    with pytest.raises(InputError, match=f"from token {fresh + 2} on"):
        compare(plan, [right[0]], NEW, ends)


def test_what_else_a_checkpoint_asks_for_is_ignored_as_in_the_engine(tmp_path: Path, capsys: Out) -> None:
    target, draft = write_random_pair(tmp_path)
    wishes = {"repetition_penalty": 9.0, "do_sample": True, "top_k": 3, "no_repeat_ngram_size": 1, "min_new_tokens": 9}
    (target / "generation_config.json").write_text(json.dumps({**wishes, "eos_token_id": [108, 110], "max_length": 5}))
    words = ["run", "--model", str(target), "--draft", str(draft), "--prompt", "Hello", "--dtype", "float64"]
    for more, count in (["--max-new-tokens", "30"], None), (["--max-new-tokens", "9", "--ignore-eos"], 9):
        assert main([*words, *more, "--greedy", "--against-plain"]) == 0
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("plain   the same ") and (count is None or f" {count} tokens" in said)


def test_a_run_says_it_and_the_results_hold_it(pair: tuple[Path, Path], tmp_path: Path, capsys: Out) -> None:
    stats = tmp_path / "stats.json"
    words = ["run", "--model", str(pair[0]), "--draft", str(pair[1]), "--prompt", "One", "Two", "--dtype", "float64"]
    words += ["--max-new-tokens", "9", "--ignore-eos", "--stats", str(stats)]
    assert main([*words, "--against-plain"]) == 0
    assert capsys.readouterr().err.endswith("\nplain   the same 18 tokens for 2 prompts from plain transformers\n")
    found = json.loads(stats.read_text())["config"]["engine"]["plain"]
    assert found == {"requests": 2, "tokens": 18, "differences": []}
    assert main(words) == 0
    assert json.loads(stats.read_text())["config"]["engine"]["plain"] is None
    assert "plain" not in capsys.readouterr().err


def test_a_run_that_differs_ends_with_one_line_and_no_files(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cli.reference._first_difference", lambda *_: Difference(1, 4, 0.25))
    words = ["run", "--model", str(pair[0]), "--prompt", "One", "--max-new-tokens", "9", "--against-plain"]
    assert main([*words, "--stats", str(tmp_path / "stats"), "--log", str(tmp_path / "log")]) == 2
    text, said = capsys.readouterr()
    assert text.count("\n") == 1
    assert said.splitlines()[-1].startswith("error: prompt 1: differs from plain transformers from token 4 on")
    assert not list(tmp_path.iterdir())


def test_what_has_no_equal(pair: tuple[Path, Path], plan: Plan) -> None:
    check_comparable(plan, Sampling(seed=3))
    with pytest.raises(InputError, match=r"--against-plain: expected greedy decoding, got temperature 0\.5"):
        check_comparable(plan, Sampling(temperature=0.5))
    with pytest.raises(InputError, match=r"--against-plain: expected a lossless policy, got adapmoe\.gated"):
        check_comparable(plan_of(pair, policy="adapmoe.gated", lossy=True), Sampling())


def test_no_room_for_the_whole_model(plan: Plan, right: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(plain, "load_whole", fail)
    with pytest.raises(InputError, match=r"^out of memory on cpu: --against-plain loads the whole model there$"):
        compare(plan, right, NEW, frozenset())
