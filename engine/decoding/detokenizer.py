"""Text from tokens as they come, which in the end is the text of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token that stands for a byte of what the vocabulary has no token for."""
_UNFINISHED: Final = "\ufffd"
"""What bytes decode to that are no character, or none yet."""
_CLEANED: Final = 4
"""A space goes where one of so many characters behind it says so, in tokenizers that clean up."""


class TextPieces:
    """Puts out text that will not change any more, and nothing twice.

    What is not settled yet is held back: bytes that are no whole character, and runs of tokens that stand for bytes,
    which are one text or, all of them, none.  A window of tokens is decoded anew each time; it begins with some that
    are put out already, since decoders treat the beginning of a text differently.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0
        """Tokens of the window whose text is out."""
        self._out = 0
        """Characters of the window's text that are."""
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(tokenizer.all_special_ids) | {token for token, each in added.items() if each.special}
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` bring to an end."""
        self._window += tokens
        end = len(self._window)
        while end > self._settled and self._may_go_on(self._window[end - 1]):
            end -= 1
        text = self._decode(0, end)
        stable = text[: max(0, len(text) - _CLEANED)] if self._cleans else text.rstrip(_UNFINISHED)
        new = stable[self._out :]
        self._out = max(self._out, len(stable))
        if len(stable) == len(text) and end > self._settled:
            self._slide(end)
        return new

    def finish(self) -> str:
        """What was held back."""
        new = self._decode(0, len(self._window))[self._out :]
        self._window, self._settled, self._out = [], 0, 0
        return new

    def _slide(self, end: int) -> None:
        """All up to `end` is out: the window may begin with what has come last, if that is any text by itself."""
        last = self._decode(self._settled, end)
        if last:
            del self._window[: self._settled]
            end -= self._settled
            self._out = len(last)
        self._settled = end

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._window[start:end], skip_special_tokens=True)
        return text

    def _may_go_on(self, token: int) -> bool:
        """Whether what comes next may change its text: it stands for a byte, or is passed over, maybe between bytes."""
        if token in self._special:
            return True
        name = self._tokenizer.convert_ids_to_tokens(token)
        return name is not None and _BYTE.fullmatch(name) is not None
