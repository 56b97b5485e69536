"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TextStreamer


class _Collector(TextStreamer):
    """Keeps what transformers would print."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


class TextPieces:
    """Turns tokens into text that will not change any more: transformers holds a word back until it is whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._streamer: Any = _Collector(tokenizer)

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` bring to an end."""
        for token in tokens:
            self._streamer.put(torch.tensor([token]))
        return self._taken()

    def finish(self) -> str:
        """What was held back."""
        self._streamer.end()
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._streamer.pieces)
        self._streamer.pieces.clear()
        return text
