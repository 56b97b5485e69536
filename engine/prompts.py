"""Prompts as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.pair import find_tokenizer
from spmoe.errors import InputError


def encode_prompts(model: Path, texts: Sequence[str], chat: bool) -> list[list[int]]:
    """The tokens of each text for the model in that folder, as what a user says in a chat where `chat` is set.

    Raises InputError where there is no tokenizer, or no chat template.
    """
    tokenizer = find_tokenizer(model)
    if tokenizer is None:
        raise InputError(f"{model}: expected a tokenizer beside the model, found none")
    if not chat:
        return [list(tokenizer(text)["input_ids"]) for text in texts]
    if tokenizer.chat_template is None:
        raise InputError(f"{model}: --chat: the tokenizer has no chat template")
    return [
        list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
        for text in texts
    ]
