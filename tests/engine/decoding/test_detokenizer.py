"""Text in pieces is the text at once, for random tokens of tokenizers of every kind that models have."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.decoding.clean_up import CleanUp
from engine.decoding.detokenizer import TextPieces
from tests.soak import times

SENTENCES = [
    "Once upon a time there was a little girl, and she didn't like rain .",
    "  He said: 'We're going home!'  They've gone ; I'm here, it 's late ?",
    "Größe, café, naïve: 你好世界。こんにちは 🙂🙃 — привет",
    "def f(x):\n    return x ** 2\n\n\tprint(f(3))",
] * 3
SPECIAL = ["<s>", "</s>", "<|end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(tokenizer: Tokenizer, **options: Any) -> Any:
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken(" spaced ", special=False)])
    tokenizer.add_special_tokens(["<|hidden|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options)


def byte_level(**options: Any) -> Any:
    """As GPT-2, Qwen, gpt-oss, OLMoE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer, **options)


def metaspace(**options: Any) -> Any:
    """As Llama-2, Mixtral, Phi-3: every byte is a token, and the leading space goes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *SPECIAL, *BYTES], show_progress=False, limit_alphabet=60
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # The trainer makes special tokens of the bytes; in models they are none.
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [each for each in document["added_tokens"] if each["content"] not in BYTES]
    return wrapped(Tokenizer.from_str(json.dumps(document)), **options)


def unigram(**options: Any) -> Any:
    """As T5 and XLNet, with the decoder that older metaspace tokenizers have; transformers cleans its text up."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken(byte, special=False) for byte in BYTES])
    return wrapped(tokenizer, **options)


def word_piece(**options: Any) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrapped(tokenizer, **options)


CLEAN = {"clean_up_tokenization_spaces": True}
FORCED = {**CLEAN, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
MADE: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level, cleaned": lambda: byte_level(**FORCED),
    "byte-level, not cleaned": lambda: byte_level(**CLEAN),
    "metaspace": metaspace,
    "metaspace, cleaned": lambda: metaspace(**FORCED),
    "unigram": unigram,
    "unigram, cleaned": lambda: unigram(**CLEAN),
    "word pieces, cleaned": lambda: word_piece(**CLEAN),
}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return MADE[request.param]()


def pieces(tokenizer: Any, tokens: Sequence[int], rng: random.Random) -> list[str]:
    """In rounds of one to five tokens."""
    text, found, place = TextPieces(tokenizer), [], 0
    while place < len(tokens):
        end = place + rng.randrange(1, 6)
        found.append(text.feed(tokens[place:end]))
        place = end
    return [*found, text.finish()]


def draw_tokens(tokenizer: Any, rng: random.Random) -> list[int]:
    """Of anything, of some few tokens that follow each other often, or of text with something in between."""
    ids = list(range(len(tokenizer) + 2))  # The last two are of a model's padded vocabulary.
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choices(ids, k=rng.randrange(30))
    if kind == 1:
        return rng.choices(rng.sample(ids, 4), k=rng.randrange(30))
    text = rng.choice(SENTENCES) if kind == 2 else "".join(rng.choices("🙂é你 a\ufffd.,'n", k=12))
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for _ in range(rng.randrange(3)):
        tokens.insert(rng.randrange(len(tokens) + 1), rng.choice(ids))
    return tokens[rng.randrange(len(tokens)) :]


def check(tokenizer: Any, cases: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(cases):
        tokens = draw_tokens(tokenizer, rng)
        assert "".join(pieces(tokenizer, tokens, rng)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_pieces_are_the_text(tokenizer: Any) -> None:
    check(tokenizer, times(1_250), 1)


@pytest.mark.slow
def test_pieces_are_the_text_many_times(tokenizer: Any) -> None:
    check(tokenizer, 20_000, 2)


def test_tokens_become_text_at_once() -> None:
    """But for an incomplete character, and for a run of bytes that may go on."""
    for tokenizer in (byte_level(), metaspace()):
        text = TextPieces(tokenizer)
        tokens = tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]
        shown = [text.feed([token]) for token in tokens]
        assert all(shown[1:]) and "".join(shown) == "Once upon a time" and text.finish() == ""
    level = byte_level()
    smile = [level.convert_tokens_to_ids(each) for each in level.tokenize("🙂")]
    if len(smile) == 1:
        smile = [level.convert_tokens_to_ids(each) for each in "ðŁĻĤ"]
    text = TextPieces(level)
    assert [text.feed([token]) for token in smile] == [""] * (len(smile) - 1) + ["🙂"]


def test_one_invalid_byte_makes_all_of_a_run_invalid() -> None:
    tokenizer = metaspace()
    run = tokenizer.convert_tokens_to_ids(["<0x41>", "<0x42>", "<0xFF>"])
    word = tokenizer("time", add_special_tokens=False)["input_ids"]
    for tokens, expected in ((run[:2], "AB"), (run, "\ufffd" * 3)):
        text = TextPieces(tokenizer)
        assert [text.feed([token]) for token in tokens] == [""] * len(tokens)
        assert text.feed(word).startswith(expected)


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_the_cost_of_a_token_is_bounded(kind: str) -> None:
    """However long the text, and a run of bytes, which is decoded once."""

    class Counting:
        decoded = 0

        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def decode(self, tokens: list[int], **options: Any) -> str:
            self.decoded += len(tokens)
            return str(self._tokenizer.decode(tokens, **options))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

    tokenizer = MADE[kind]()
    for choice in (
        range(len(tokenizer)),
        tokenizer.convert_tokens_to_ids(BYTES if kind == "metaspace" else ["ð", "Ł"]),
    ):
        counting, rng = Counting(tokenizer), random.Random(3)
        text = TextPieces(counting)
        for token in rng.choices(choice, k=3000):
            text.feed([token])
        text.finish()
        assert counting.decoded < 3000 * 12


@settings(max_examples=times(500), deadline=None)
@given(st.lists(st.text(" .?!,'ntmsvrea", max_size=6), max_size=12))
def test_clean_up_in_pieces_is_that_of_transformers(given_pieces: list[str]) -> None:
    clean = CleanUp()
    found = [clean.feed(piece) for piece in given_pieces]
    expected = PreTrainedTokenizerFast.clean_up_tokenization(None, "".join(given_pieces))
    assert "".join([*found, clean.finish()]) == expected
