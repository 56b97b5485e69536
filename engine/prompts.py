"""Prompts as tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.loader import refusing
from engine.pair import find_tokenizer
from spmoe.errors import InputError


def encode_prompts(model: Path, texts: Sequence[str], chat: bool) -> list[list[int]]:
    """The tokens of each text for the model in that folder, as what a user says in a chat where `chat` is set.

    Raises InputError where there is no tokenizer, or no chat template, and for a text that it makes no tokens of.
    """
    tokenizer = find_tokenizer(model)
    if tokenizer is None:
        raise InputError(f"{model}: expected a tokenizer beside the model, found none")
    if chat and tokenizer.chat_template is None:
        raise InputError(f"{model}: --chat: the tokenizer has no chat template")
    prompts = []
    for number, text in enumerate(texts, start=1):
        if not _is_unicode(text):
            raise InputError(f"prompt {number}: expected text in {sys.getfilesystemencoding()}")
        with refusing(f"prompt {number}: the tokenizer of {model} cannot read it"):
            if chat:
                said = [{"role": "user", "content": text}]
                encoded = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
            else:
                encoded = tokenizer(text)
        prompts.append(list(encoded["input_ids"]))
        if not prompts[-1]:
            raise InputError(f"prompt {number}: expected at least one token, got an empty text")
    return prompts


def _is_unicode(text: str) -> bool:
    """Whether it can be written down: an argument with other bytes than its encoding knows holds halves of pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
