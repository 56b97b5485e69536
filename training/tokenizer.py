"""The pair's tokenizer: byte-level BPE, trained on what the models learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.corpus import Source
from training.recipe import SPECIAL


def train_tokenizer(sources: Iterable[Source], vocabulary: int) -> Any:
    """A tokenizer of at most `vocabulary` tokens, which begins every text with "<s>"; the same for the same files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((source.text for source in sources), trainer)
    begin, end = SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: Any, sources: Sequence[Source]) -> list[int]:
    """The files one after the other, each between "<s>" and "</s>"."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast([source.text for source in sources])
    return list(chain.from_iterable([*each.ids, 1] for each in encoded))
