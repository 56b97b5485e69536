"""A conversation as tokens, by the template that a model's tokenizer brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.checkpoints.refusing import refusing
from spmoe.errors import InputError


def encode_messages(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """The tokens of `messages`, and of the beginning of an answer; `arguments` are the template's own.

    Each message has a role and content: a text, or a list of parts of which those that are text count.  Raises
    InputError where there is no template, for messages that are none, and for what the template refuses.
    """
    if tokenizer is None or tokenizer.chat_template is None:
        raise InputError("messages: expected a tokenizer with a chat template beside the model")
    if not messages:
        raise InputError("messages: expected at least one")
    said = [_message(number, message) for number, message in enumerate(messages, start=1)]
    with refusing("messages: the chat template refuses them"):
        encoded = tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_dict=True, **dict(arguments or {})
        )
    return list(encoded["input_ids"])


def _message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"messages: number {number}: expected a role and content, got {str(message)[:60]!r}")
    return {**message, "content": _text(number, message.get("content"))}


def _text(number: int, content: Any) -> str:
    """Templates join strings: a list of parts becomes one."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise InputError(f"messages: number {number}: expected content that is text, got {str(content)[:60]!r}")
