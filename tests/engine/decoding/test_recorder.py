"""Runs as traces: what is written down is what was routed, forecast and agreed on, and the simulator can read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.decoding.recorder import Recorder  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.moe.layers import find_moe_layers  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from sim.__main__ import main as simulator  # noqa: E402
from spmoe.scheduler.log import lines_of  # noqa: E402
from spmoe.state.events import Forecast  # noqa: E402
from spmoe.trace.reader import TraceFile  # noqa: E402
from spmoe.trace.schema import PrefillLine, RejectedLine, TokenLine  # noqa: E402
from spmoe.trace.windows import requests, window  # noqa: E402
from spmoe.trace.writer import write_trace  # noqa: E402
from tests.engine.drafted import Pair, save_pair  # noqa: E402
from tests.engine.runs import SLOW, Request, Run, run  # noqa: E402
from tests.engine.tiny import eager_model  # noqa: E402

FAMILIES = ("mixtral", "qwen2-moe", "deepseek-v3", "glm4-moe")
PROMPTS = (Request((1, 5, 9, 33, 7), 9), Request((60, 3), 7))
ENDLESS = {"ignore_eos": True}


# By hand: two layers of four experts, one per token.  Token n of a pass goes to experts (n + shift) % 4 and n % 4, and
# forecasts of next gates and drafts carry the number of the pass or token they belong to.


def forecast(expert: int, number: int) -> Forecast:
    return ((expert, number),)


def note(recorder: Recorder, tokens: int, drafted: Sequence[int] = (), shift: int = 1, gate: bool = True) -> None:
    """A pass of so many tokens, behind drafted tokens of these probabilities."""
    for probability in drafted:
        recorder.drafted(probability, (forecast(0, probability), forecast(1, probability)))
    gates = tuple(forecast(2, token) for token in range(tokens)) if gate else None
    recorder.routed(0, [[(token + shift) % 4] for token in range(tokens)], [[100]] * tokens, gates)
    recorder.routed(1, [[token % 4] for token in range(tokens)], [[200]] * tokens, None)


def begun() -> Recorder:
    """One that has read a prompt of five tokens."""
    recorder = Recorder(layers=2, experts=4)
    note(recorder, 5, gate=False)
    recorder.begin(0, 5)
    return recorder


def of_token(token: int, drafted: int | None = None, shift: int = 1) -> dict[str, Any]:
    """What lines say of the token of a pass; `drafted` is the probability of what the draft proposed next."""
    forecasts: dict[str, Any] = {"next_gate": ((), forecast(2, token))}
    if drafted is not None:
        forecasts = {"draft": (forecast(0, drafted), forecast(1, drafted)), **forecasts}
    return {
        "routed": (((token + shift) % 4,), (token % 4,)),
        "weights": ((100,), (200,)),
        "draft_prob": drafted,
        "forecasts": forecasts,
    }


def reviewed(agreeing: Sequence[bool]) -> Any:
    """A draft that proposes what follows, or another token; its probabilities are 1000 + position."""

    def review(tokens: Sequence[int]) -> list[tuple[int, int, tuple[Forecast, ...] | None]]:
        following = [*tokens[1:], -1]
        return [
            (following[n] if n < len(agreeing) and agreeing[n] else -2, 1000 + n, (forecast(3, n), forecast(3, n)))
            for n in range(len(tokens))
        ]

    return review


def nobody(_tokens: Sequence[int]) -> Any:
    pytest.fail("there is nothing to look up")


def test_a_prompt_by_hand() -> None:
    assert list(begun()) == [
        PrefillLine(0, 5, ((0, 1, 2, 3), (0, 1, 2, 3)), counts=((1, 2, 1, 1), (2, 1, 1, 1))),
    ]


def test_a_rejection_by_hand() -> None:
    """Three drafted, the first stands: its line carries what followed."""
    recorder = begun()
    note(recorder, 4, (11, 12, 13))
    recorder.step(position=5, tokens=4, accepted=1, agreed=1)
    recorder.end([9] * 5 + [20, 21, 22], nobody)
    rejected = (
        RejectedLine(**of_token(2, 13)),
        RejectedLine(**of_token(3)),
    )
    assert list(recorder)[1:] == [
        TokenLine(0, 5, agree=True, **of_token(0, 11)),
        TokenLine(0, 6, agree=False, rejected=rejected, **of_token(1, 12)),
    ]
    assert recorder.tokens == 2


@pytest.mark.parametrize("agrees", [False, True])
def test_full_acceptance_by_hand(agrees: bool) -> None:
    """The draft did not go on from the last input: it is asked afterwards."""
    recorder = begun()
    note(recorder, 3, (11, 12))
    recorder.step(position=5, tokens=3, accepted=2, agreed=2)
    recorder.end([9] * 5 + [20, 21, 22, 23], reviewed([False] * 7 + [agrees]))
    last = of_token(2)
    last["draft_prob"] = 1007
    last["forecasts"] = {"draft": (forecast(3, 7), forecast(3, 7)), **last["forecasts"]}
    assert list(recorder)[1:] == [
        TokenLine(0, 5, agree=True, **of_token(0, 11)),
        TokenLine(0, 6, agree=True, **of_token(1, 12)),
        TokenLine(0, 7, agree=agrees, **last),
    ]


def test_an_end_inside_a_block_by_hand() -> None:
    """All three drafted would stand, but the second ends the sequence: it is put out and is no input any more."""
    recorder = begun()
    note(recorder, 4, (11, 12, 13))
    recorder.step(position=5, tokens=4, accepted=1, agreed=3)
    recorder.end([9] * 5 + [20, 21, 2], nobody)
    first, last = list(recorder)[1:]
    assert isinstance(first, TokenLine) and isinstance(last, TokenLine)
    assert (first.agree, last.agree) == (True, True)
    assert last.rejected == (RejectedLine(**of_token(2, 13)), RejectedLine(**of_token(3)))
    # And so a replay comes to the same window.
    assert window([first, last], 3).inputs == (first, last, *last.rejected)
    assert window([first, last], 3).accepted == 1


def test_no_draft_by_hand() -> None:
    recorder = begun()
    for step in range(2):
        note(recorder, 1, shift=step)
        recorder.step(position=5 + step, tokens=1, accepted=0, agreed=0)
    recorder.end([9] * 5 + [20, 21, 22], None)
    assert list(recorder)[1:] == [TokenLine(0, 5 + n, agree=False, **of_token(0, shift=n)) for n in range(2)]


def test_a_second_request_by_hand() -> None:
    """What belonged to the first one is gone."""
    recorder = begun()
    note(recorder, 2, (11,))
    recorder.step(position=5, tokens=2, accepted=0, agreed=0)
    recorder.end([9] * 5 + [20, 21], nobody)
    note(recorder, 2, gate=False)
    recorder.begin(1, 2)
    note(recorder, 1)
    recorder.step(position=2, tokens=1, accepted=0, agreed=0)
    recorder.end([9, 9, 30, 31], reviewed([True] * 4))
    assert [(line.request, getattr(line, "position", None)) for line in recorder] == [
        (0, None),
        (0, 5),
        (1, None),
        (1, 2),
    ]
    last = list(recorder)[-1]
    assert isinstance(last, TokenLine) and last.agree and last.draft_prob == 1002


# With models.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("pair"), "mixtral")


class Seen(NamedTuple):
    """What a plain forward pass over a text came by, per MoE layer: [tokens, k] and [tokens, hidden]."""

    routed: list[torch.Tensor]
    residuals: list[torch.Tensor]


@torch.no_grad()
def plain_forward(model: Any, text: Sequence[int]) -> Seen:
    routed: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    hooks = []
    for layer in find_moe_layers(model):
        assert layer.norm is not None
        hooks += [
            layer.router.module.register_forward_hook(lambda _module, _inputs, output: routed.append(output[2])),
            layer.norm.register_forward_pre_hook(lambda _module, inputs: residuals.append(inputs[0].flatten(0, -2))),
        ]
    model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return Seen(routed, residuals)


@pytest.mark.parametrize("family", FAMILIES)
def test_lines_say_what_a_plain_forward_pass_routes(tmp_path: Path, family: str) -> None:
    """In float64, over the final text of each request; forecasts too, each from the state it is made of."""
    pair = save_pair(tmp_path, family)
    found = run(pair, PROMPTS, None, policy="spmoe.per-layer", cache=0.5, gamma=3, dtype="float64", sampling=ENDLESS)
    model, draft = (eager_model(folder, torch.float64) for folder in pair)
    layers = find_moe_layers(model)
    forecasts = 0
    for request in requests(found.trace):
        prompt = PROMPTS[request.number].prompt
        text = [*prompt, *found.tokens[request.number]]
        seen, of_draft = plain_forward(model, text), plain_forward(draft, text)
        assert request.prefill is not None
        for layer, routed in enumerate(seen.routed):
            counts = torch.bincount(routed[: len(prompt)].flatten(), minlength=64).tolist()
            touched = tuple(expert for expert, count in enumerate(counts) if count)
            assert request.prefill.touched[layer] == touched
            assert request.prefill.counts is not None
            assert request.prefill.counts[layer] == tuple(counts[expert] for expert in touched)
        lines = request.lines(99)
        assert [line.position for line in lines] == list(range(len(prompt), len(text) - 1))
        for line in lines:
            assert line.routed == tuple(tuple(routed[line.position].tolist()) for routed in seen.routed)
            for layer in layers:
                from_draft = layer.forecast(of_draft.residuals[layer.index][line.position][None])[0]
                assert experts(line.forecasts["draft"][layer.index]) == tuple(from_draft[0].tolist())
                before = line.forecasts["next_gate"][layer.index]
                if layer.index == 0:
                    assert before == ()
                    continue
                from_gate = layer.forecast(seen.residuals[layer.index - 1][line.position][None])[0]
                assert experts(before) == tuple(from_gate[0].tolist())
                forecasts += 1
    assert forecasts > 10


def experts(forecast: Forecast) -> tuple[int, ...]:
    return tuple(expert for expert, _ in forecast)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_with_the_targets_attention_knows_the_first_layer(tmp_path: Path, family: str) -> None:
    """Up to there it is the target: every one of its forecasts is right, of tokens that stand and of those that do not.

    Behind the first experts, which differ, some are wrong.
    """
    pair = save_pair(tmp_path, family, noise=0.2)
    found = run(pair, PROMPTS, None, policy="spmoe.paper", cache=0.5, gamma=3, dtype="float64", sampling=ENDLESS)
    right = [0] * found.plan.setting.shape.layers
    total = 0
    for line in found.trace:
        for each in (line, *line.rejected) if isinstance(line, TokenLine) else ():
            for layer, forecast in enumerate(each.forecasts.get("draft", ())):
                right[layer] += set(experts(forecast)) == set(each.routed[layer])
            total += "draft" in each.forecasts
    assert right[0] == total > 20
    assert max(right[1:]) < total


def test_agreement_is_that_of_both_models_on_the_final_text(pair: Pair) -> None:
    found = run(pair, PROMPTS, None, policy="spmoe.paper", slots=6, gamma=4, dtype="float64", sampling=ENDLESS)
    model, draft = (eager_model(folder, torch.float64) for folder in pair)
    agreed = []
    for request in requests(found.trace):
        text = [*PROMPTS[request.number].prompt, *found.tokens[request.number]]
        with torch.no_grad():
            ours, theirs = (each(torch.tensor([text])).logits[0].argmax(-1).tolist() for each in (model, draft))
        for line in request.lines(99):
            assert line.agree == (ours[line.position] == theirs[line.position])
            agreed.append(line.agree)
    assert set(agreed) == {True, False}  # Both were tried.


def written(found: Run, folder: Path) -> Path:
    file = folder / "run.jsonl.gz"
    write_trace(file, found.trace.header, found.trace)
    return file


@pytest.mark.parametrize("options", [{"gamma": 4}, {"gamma": 0}, {"draft": False}])
def test_the_simulator_reads_it(
    tmp_path: Path, pair: Pair, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    found = run(pair, PROMPTS, SLOW, policy="on-demand.lru", slots=6, sampling=ENDLESS, **options)
    file = written(found, tmp_path)
    trace = TraceFile(file)
    assert trace.header == found.trace.header and list(trace) == list(found.trace)
    assert simulator(["check", str(file)]) == 0
    assert "recorded" in capsys.readouterr().out
    names = {"next_gate"} if options.get("draft") is False else {"draft", "next_gate"}
    assert set(trace.header.forecasts) == names


def test_recording_changes_neither_tokens_nor_decisions(pair: Pair) -> None:

    found = run(pair, PROMPTS, SLOW, policy="spmoe.per-layer", slots=6, gamma=3, sampling=ENDLESS)
    lines: list[str] = []
    plan = make_plan(*pair, found.plan.options)
    with Engine(plan, [lambda event, commands: lines.extend(lines_of(event, commands, 4))]) as engine:
        tokens = tuple(engine.generate(prompt, budget, **ENDLESS).tokens for prompt, budget in PROMPTS)
        engine.finish()
    assert tokens == found.tokens
    assert lines == found.log.splitlines(keepends=True)[1:-1]


def test_a_request_that_ends_with_its_first_token_can_be_read_again(tmp_path: Path, pair: Pair) -> None:
    """Nothing is decoded then: a prompt, and no token line."""
    found = run(pair, [*PROMPTS, Request((4, 4), 1)], SLOW, policy="on-demand.lru", slots=6, sampling=ENDLESS)
    assert list(TraceFile(written(found, tmp_path))) == list(found.trace)
