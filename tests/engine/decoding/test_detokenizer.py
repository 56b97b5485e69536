"""Streamed text is the text of all tokens at once, for the kinds of tokenizers that models have."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the engine needs transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.decoding.detokenizer import TextPieces
from tests.soak import times

TEXTS = [
    "the work of a day is done when the sun goes down",
    "über größe, naïve café: 你好 世界 🙂🙃",
    "def f(x):\n    return x + 1\n",
    "don 't stop , it 's . ok ?",
]
SEQUENCES = times(1_500, soaked=500)
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level() -> Any:
    """As GPT-2's, Llama 3's and Qwen's: every token is a string of bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **NAMES)


def metaspace() -> Any:
    """As Llama 2's and Mixtral's: spaces are characters, and bytes stand for what the vocabulary lacks."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXTS[::2], trainers.BpeTrainer(vocab_size=400, special_tokens=reserved))
    described = json.loads(made.to_str())
    described["added_tokens"] = [each for each in described["added_tokens"] if not is_byte(each["content"])]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), unk_token="<unk>", **NAMES
    )


def word_piece() -> Any:
    """As BERT's: spaces before punctuation go away when the text is cleaned up."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "<s>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", clean_up_tokenization_spaces=True, **NAMES)


def is_byte(name: str) -> bool:
    return name.startswith("<0x")


@pytest.mark.parametrize("make", [byte_level, metaspace, word_piece])
def test_pieces_together_are_the_text_at_once(make: Any) -> None:
    tokenizer = make()
    drawn = random.Random(1)
    for number in range(SEQUENCES):
        tokens = [drawn.randrange(len(tokenizer)) for _ in range(drawn.randrange(1, 40))]
        if number % 2:  # Bytes above all, and special tokens in between.
            tokens = [drawn.randrange(3, 259) if drawn.random() < 0.7 else token for token in tokens]
            tokens = [1 if drawn.random() < 0.1 else token for token in tokens]
        tokens = [token for token in tokens if token < len(tokenizer)]
        pieces, shown, place = TextPieces(tokenizer), "", 0
        while place < len(tokens):
            step = drawn.randrange(1, 5)
            shown += pieces.feed(tokens[place : place + step])
            place += step
        assert shown + pieces.finish() == tokenizer.decode(tokens, skip_special_tokens=True), tokens


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_word_is_out_as_soon_as_it_is_whole(make: Any) -> None:
    tokenizer = make()
    pieces = TextPieces(tokenizer)
    shown = [pieces.feed([token]) for token in tokenizer("the work of a day")["input_ids"]]
    assert "".join(shown) == "the work of a day" and pieces.finish() == ""


def test_half_a_character_is_held_back() -> None:
    tokenizer = byte_level()
    smile = tokenizer("🙃 🙂")["input_ids"]
    pieces = TextPieces(tokenizer)
    shown = [pieces.feed([token]) for token in smile]
    assert "\ufffd" not in "".join(shown) and "".join(shown) + pieces.finish() == "🙃 🙂"


def test_what_is_decoded_does_not_grow_with_the_text() -> None:
    tokenizer, most = metaspace(), 0
    decode = tokenizer.decode

    def watched(tokens: list[int], **options: Any) -> str:
        nonlocal most
        most = max(most, len(tokens))
        return str(decode(tokens, **options))

    tokenizer.decode = watched
    pieces = TextPieces(tokenizer)
    for token in tokenizer(" ".join(TEXTS[:1] * 20))["input_ids"]:
        pieces.feed([token])
    assert most < 8
