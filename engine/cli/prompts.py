"""Prompts: what they are called, where they come from, and their tokens."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpoints.chat_template import encode_messages
from engine.checkpoints.refusing import refusing
from engine.checkpoints.tokenizer_files import find_tokenizer
from spmoe.errors import InputError
from spmoe.files import reason


class Prompt(NamedTuple):
    """A text, and what messages call it."""

    name: str
    text: str


def number_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Prompts that were given one after the other."""
    return [Prompt(f"prompt {number}", text) for number, text in enumerate(texts, start=1)]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts in a file, called by its name and the number of their line; lines of white space are passed over.

    In a .txt file every line is one; in a .jsonl file a line is a JSON string, or an object whose "prompt" is one.
    Raises InputError, naming the line, for anything else, and for a file without prompts.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: expected a .txt or .jsonl file")
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        name = f"{path}:{number}"
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: expected text in UTF-8: {error}") from None
        if text.strip():
            prompts.append(Prompt(name, text if path.suffix == ".txt" else _decode(name, text)))
    if not prompts:
        raise InputError(f"{path}: expected at least one prompt, found none")
    return prompts


class Chat(NamedTuple):
    """Prompts are what a user says in a chat, behind `system` if there is any; `arguments` are the chat template's."""

    system: str | None
    arguments: Mapping[str, Any]

    def messages(self, text: str) -> list[dict[str, str]]:
        """The conversation in which the user says `text`."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, {"role": "user", "content": text}]


def encode_prompts(model: Path, prompts: Sequence[Prompt], chat: Chat | None) -> list[list[int]]:
    """The tokens of each for the model in that folder.

    Raises InputError where there is no tokenizer, or no chat template, and for a text that it makes no tokens of.
    """
    tokenizer = find_tokenizer(model)
    if tokenizer is None:
        raise InputError(f"{model}: expected a tokenizer beside the model, found none")
    if chat is not None and tokenizer.chat_template is None:
        raise InputError(f"{model}: --chat: the tokenizer has no chat template")
    return [_encode(tokenizer, model, prompt, chat) for prompt in prompts]


def _encode(tokenizer: Any, model: Path, prompt: Prompt, chat: Chat | None) -> list[int]:
    name, text = prompt
    if not _is_unicode(text):
        raise InputError(f"{name}: expected text in {sys.getfilesystemencoding()}")
    with refusing(f"{name}: the tokenizer of {model} cannot read it"):
        if chat is None:
            tokens = list(tokenizer(text)["input_ids"])
        else:
            tokens = encode_messages(tokenizer, chat.messages(text), chat.arguments)
    if not tokens:
        raise InputError(f"{name}: expected at least one token, got an empty text")
    return tokens


def _decode(name: str, line: str) -> str:
    """The prompt that a line of JSON says."""
    try:
        value = json.loads(line)
    except (RecursionError, ValueError) as error:
        raise InputError(f"{name}: expected JSON: {error}") from None
    text = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{name}: expected a JSON string, or an object with a string called "prompt"')
    return text


def _is_unicode(text: str) -> bool:
    """Whether it can be written down: an argument with other bytes than its encoding knows holds halves of pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
