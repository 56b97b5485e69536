"""What a request puts out: stop strings, reasons, counts, log-probabilities, messages; and what the next one keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

import transformers as tf  # noqa: E402

from benchmarks.engine.random_pair import write_random_pair  # noqa: E402
from engine.checkpoints.bundled import EXAMPLE, bundled_pair  # noqa: E402
from engine.checkpoints.model_pair import load_whole  # noqa: E402
from engine.decoding.ngram_drafter import continuation  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.generation import LENGTH, STOP, Generation  # noqa: E402
from spmoe.errors import InputError  # noqa: E402

TEMPLATE = (
    "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}"
    "{% if thinking is defined and not thinking %}<quick>{% endif %}<assistant>"
)
PROMPT = list(range(60, 80))
TEXT = "Hello"
GREEDY = tf.GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = write_random_pair(tmp_path_factory.mktemp("pair"))
    path = folders[0] / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folders


@pytest.fixture(scope="module")
def engine(pair: tuple[Path, Path]) -> Iterator[Engine]:
    with Engine.from_pretrained(*pair, dtype="float64", device="cpu") as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(pair: tuple[Path, Path]) -> Any:
    return load_whole(pair[0], torch.float64, torch.device("cpu"), "eager")


def test_length_ends_it_and_everything_is_counted(engine: Engine) -> None:
    pieces = list(engine.stream(TEXT, 24, ignore_eos=True))
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == LENGTH
    done = 0
    for piece in pieces:
        done += len(piece.tokens)
        assert (piece.prompt_tokens, piece.generated_tokens) == (len(engine.plan.encode(TEXT)), done)
    whole = Generation.of(pieces)
    assert whole.generated_tokens == len(whole.tokens) == 24 and whole.finish_reason == LENGTH


def test_an_end_of_sequence_ends_it(pair: tuple[Path, Path], engine: Engine, tmp_path: Path) -> None:
    """Of several, whichever comes first; not before `min_tokens`."""
    tokens = engine.generate(PROMPT, 24, ignore_eos=True).tokens
    folder = tmp_path / "target"
    folder.mkdir()
    for each in pair[0].iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    ends = [tokens[7], tokens[11]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    first = next(place for place, token in enumerate(tokens) if token in ends)
    with Engine.from_pretrained(folder, pair[1], dtype="float64", device="cpu") as several:
        found = several.generate(PROMPT, 24)
        assert (found.tokens, found.finish_reason) == (tokens[: first + 1], STOP)
        later = several.generate(PROMPT, 24, min_tokens=15)
        assert len(later.tokens) >= 15 and not set(later.tokens[:14]) & set(ends)


@pytest.fixture(scope="module")
def pico() -> Iterator[Engine]:
    """The bundled pair, whose tokens are words."""
    with Engine.from_pretrained(*bundled_pair(), device="cpu") as engine:
        yield engine


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 3, 11, 20, 31])
def test_a_stop_string_anywhere_is_cut_off(pico: Engine, start: int, length: int) -> None:
    """Across tokens, and in the middle of a drafted block."""
    whole = pico.generate(EXAMPLE, 40, ignore_eos=True)
    assert len(whole.text) > 40
    stop = whole.text[start : start + length]
    found = pico.generate(EXAMPLE, 40, ignore_eos=True, stop=[stop, "never comes"])
    assert found.text == whole.text[: whole.text.index(stop)] and found.finish_reason == STOP
    assert found.tokens == whole.tokens[: len(found.tokens)] and len(found.tokens) < 40
    assert pico.generate(EXAMPLE, 40, ignore_eos=True).tokens == whole.tokens


def test_logprobs_are_those_of_the_model_as_it_is(engine: Engine, plain: Any) -> None:
    found = engine.generate(PROMPT, 12, ignore_eos=True, logprobs=3, temperature=0.9, top_k=5, seed=1)
    tokens = [*PROMPT, *found.tokens]
    with torch.inference_mode():
        rows = plain(input_ids=torch.tensor([tokens])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    assert [each.token for each in found.logprobs] == list(found.tokens)
    for row, each in zip(rows, found.logprobs, strict=True):
        assert each.logprob == pytest.approx(float(row[each.token]), abs=1e-4)
        values, ids = row.topk(3)
        assert [token for token, _ in each.top] == ids.tolist()
        assert [value for _, value in each.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert engine.generate(PROMPT, 2, logprobs=0).logprobs[0].top == ()
    assert math.isfinite(found.logprobs[0].logprob)


def test_messages_go_through_the_chat_template(engine: Engine) -> None:
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]}]

    def tokens(text: str) -> list[int]:
        return list(engine.plan.tokenizer(text, add_special_tokens=False)["input_ids"])

    written = tokens("<system>S<user>U<assistant>")
    assert engine.generate(messages=said, max_new_tokens=4).tokens == engine.generate(written, 4).tokens
    assert engine.plan.encode(None, said, {"thinking": False}) == tokens("<system>S<user>U<quick><assistant>")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "prompt: expected one, or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt: expected one, or messages"),
        ({"messages": []}, "messages: expected at least one"),
        ({"messages": [{"role": "user"}]}, "messages: number 1: expected content that is text"),
        ({"messages": ["hello"]}, "messages: number 1: expected a role and content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "number 1: expected content that is text"),
        ({"prompt": "a", "stop": [""]}, "stop: expected texts that are not empty"),
        ({"prompt": "a", "logprobs": -1}, "logprobs: expected a number of tokens, got -1"),
        ({"prompt": "a", "top_p": 2}, "field top_p: expected"),
        ({"prompt": "a", "beams": 2}, "field beams: unknown"),
    ],
)
def test_bad_requests_get_one_line(engine: Engine, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        engine.generate(max_new_tokens=4, **options)
    assert engine.generate(PROMPT, 2).generated_tokens == 2


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}])
def test_greedy_with_a_penalty_is_that_of_transformers(engine: Engine, plain: Any, penalty: dict[str, float]) -> None:
    inputs = torch.tensor([PROMPT])
    plain.generation_config = tf.GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=None, **penalty)
    with torch.inference_mode():
        expected = plain.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(PROMPT) :].tolist()
    assert list(engine.generate(PROMPT, 24, ignore_eos=True, **penalty).tokens) == expected


def test_a_request_keeps_what_it_has_in_common_with_the_one_before(pair: tuple[Path, Path], plain: Any) -> None:
    """Only what is new is read, and what comes out is the same."""
    with Engine.from_pretrained(*pair, dtype="float64", device="cpu") as engine:
        first = engine.generate(PROMPT, 12, ignore_eos=True).tokens
        turns = [
            [*PROMPT, *first, 5, 6, 7],
            [*PROMPT, *first[:6], 9, 9],
            [*PROMPT[:4], 8],
            [8, 8, 8],
            [8, 8, 8],
            [8, 8],
        ]
        plain.generation_config = GREEDY
        for turn in turns:
            inputs = torch.tensor([turn])
            with torch.inference_mode():
                expected = plain.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(turn) :].tolist()
            found = engine.generate(turn, 24, ignore_eos=True, keep_context=True)
            assert list(found.tokens) == expected and found.prompt_tokens == len(turn)
        kept, asked = engine.kept_tokens()
        # The last token that a request puts out is in no cache yet, and the last of a prompt is always read.
        assert kept == (len(PROMPT) + 11) + (len(PROMPT) + 6) + 4 + 0 + 2 + 1
        assert asked == len(PROMPT) + sum(map(len, turns))


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "short_mscale": 1.0,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "config",
    [
        tf.GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=8),
        tf.PhimoeConfig(**SMALL, num_local_experts=4, max_position_embeddings=256, rope_parameters=LONGROPE),
        tf.GraniteMoeHybridConfig(
            **SMALL,
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=16,
            layer_types=["mamba", "attention"],
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
        ),
    ],
    ids=["sliding", "longrope", "mamba"],
)
@pytest.mark.parametrize("drafted", [False, True])
def test_what_cannot_be_kept_is_read_again(config: Any, drafted: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for each in target.parameters():
            if each.ndim > 1:
                each.normal_(0, 0.4)
    target.save_pretrained(tmp_path / "target")
    draft = tmp_path / "draft" if drafted else None
    if drafted:
        tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)).save_pretrained(tmp_path / "draft")
    model = load_whole(tmp_path / "target", torch.float64, torch.device("cpu"), "eager")
    model.generation_config = GREEDY
    with Engine.from_pretrained(tmp_path / "target", draft, dtype="float64", device="cpu") as engine:
        turn = list(range(3, 23))
        for new in ([7, 8], [9], []):
            inputs = torch.tensor([turn])
            with torch.inference_mode():
                expected = model.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(turn) :].tolist()
            found = list(engine.generate(turn, 24, ignore_eos=True, keep_context=True).tokens)
            assert found == expected
            turn = [*turn, *found[:9], *new]


def test_ngram_drafts_are_what_followed_before() -> None:
    assert continuation([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
    assert continuation([1, 2, 3, 4, 2, 3, 5, 9, 2, 3], 2) == [5, 9]
    assert continuation([1, 2, 3], 4) == [] and continuation([7], 4) == []
    assert continuation([5, 5], 3) == [5]
    # The longest ending counts, though a shorter one came again later.
    assert continuation([1, 2, 3, 8, 3, 7, 1, 2, 3], 1) == [8]


@pytest.mark.parametrize("options", [{}, {"policy": "on-demand.lru", "gamma": 6}])
def test_ngram_drafts_change_no_token(pair: tuple[Path, Path], plain: Any, options: dict[str, Any]) -> None:
    prompt = [*PROMPT, *PROMPT, *PROMPT[:3]]
    plain.generation_config = GREEDY
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        expected = plain.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(prompt) :].tolist()
    with Engine.from_pretrained(pair[0], "ngram", dtype="float64", device="cpu", **options) as engine:
        assert list(engine.generate(prompt, 24, ignore_eos=True).tokens) == expected
        assert engine.transfers().drafted > 0
        one, two = (engine.generate(prompt, 24, temperature=1.0, seed=2, ignore_eos=True).tokens for _ in range(2))
        assert one == two
