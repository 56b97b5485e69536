"""What transformers' `clean_up_tokenization` does to a text, done to text that comes in pieces."""

from __future__ import annotations

from typing import Final

REPLACEMENTS: Final = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""One after the other, each over the whole text."""


class CleanUp:
    """Drops spaces that a tokenizer puts before punctuation and contractions."""

    def __init__(self) -> None:
        self._held = [""] * len(REPLACEMENTS)
        """Before each replacement, the text that may be the beginning of what it replaces."""

    def feed(self, text: str) -> str:
        """The text that is final now that `text` has come."""
        for number, (old, new) in enumerate(REPLACEMENTS):
            *whole, rest = (self._held[number] + text).split(old)
            held = next((length for length in range(len(old) - 1, 0, -1) if rest.endswith(old[:length])), 0)
            self._held[number] = rest[len(rest) - held :]
            text = new.join([*whole, rest[: len(rest) - held]])
        return text

    def finish(self) -> str:
        """The text is over: what was held back."""
        text = ""
        for number, (old, new) in enumerate(REPLACEMENTS):
            text = (self._held[number] + text).replace(old, new)
            self._held[number] = ""
        return text
