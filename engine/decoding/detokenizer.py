"""Text from tokens as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final

from engine.decoding.clean_up import CleanUp

_BYTE: Final = re.compile("<0x..>")
_INCOMPLETE: Final = "\ufffd"
"""How an incomplete UTF-8 sequence is decoded."""
_CONTEXT: Final = 4
"""An incomplete sequence has at most three bytes, and begins in one of the last three tokens, then.  The one before
them is there for decoders that treat the first token in a way of its own (as a rule they strip its leading space)."""


class _Kind(Enum):
    """What a token is to a decoder."""

    SKIPPED = auto()
    """A special token, or one that the tokenizer has not."""
    BYTE = auto()
    """Byte fallback: of a run of such tokens either all are text, or each is an invalid character."""
    WHOLE = auto()


class TextPieces:
    """Turns tokens into text that will not change any more.

    Together the pieces are what `tokenizer.decode(tokens, skip_special_tokens=True)` makes of all tokens at once, for
    decoders that treat tokens one by one but for the first, runs of byte fallback and UTF-8: byte-level BPE, metaspace
    with and without byte fallback, WordPiece.  A token costs the decoding of a few, however long the text is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kinds: dict[int, _Kind] = {}
        self._context: list[int] = []
        """The last tokens whose text is out, but for an incomplete sequence at the end."""
        self._out = 0
        """How much of the text of `_context` is out."""
        self._waiting: list[int] = []
        """Bytes behind them, of a run that may go on."""
        self._clean_up = CleanUp() if _cleans(tokenizer) else None

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` bring to an end."""
        ready = 0
        for token in tokens:
            kind = self._kind(token)
            if kind is not _Kind.SKIPPED:
                self._waiting.append(token)
            if kind is _Kind.WHOLE:
                ready = len(self._waiting)
        if not ready:
            return ""
        read = [*self._context, *self._waiting[:ready]]
        del self._waiting[:ready]
        text = self._decode(read)
        piece = text[self._out : _final(text)]
        self._context = read[-_CONTEXT:]
        self._out = _final(self._decode(self._context))
        return piece if self._clean_up is None else self._clean_up.feed(piece)

    def finish(self) -> str:
        """The tokens are over: what was held back."""
        piece = self._decode([*self._context, *self._waiting])[self._out :]
        self._context, self._waiting, self._out = [], [], 0
        return piece if self._clean_up is None else self._clean_up.feed(piece) + self._clean_up.finish()

    def _kind(self, token: int) -> _Kind:
        if token not in self._kinds:
            self._kinds[token] = self._kind_of(token)
        return self._kinds[token]

    def _kind_of(self, token: int) -> _Kind:
        name = self._tokenizer.convert_ids_to_tokens(token)
        special = not self._decode([token]) and self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if name is None or special:
            return _Kind.SKIPPED
        return _Kind.BYTE if _BYTE.fullmatch(name) else _Kind.WHOLE

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _final(text: str) -> int:
    """How much of `text` stays as it is when more tokens come."""
    return len(text) - text.endswith(_INCOMPLETE)


def _cleans(tokenizer: Any) -> bool:
    """Whether `tokenizer.decode` cleans up: as a rule transformers spares the text of fast BPE tokenizers."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    forced: bool = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return backend is None or type(backend.model).__name__ != "BPE" or forced
