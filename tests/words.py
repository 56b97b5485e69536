"""Words of a command line, whose options are given once."""

from __future__ import annotations

from collections.abc import Sequence


def with_defaults(defaults: Sequence[str], words: Sequence[str]) -> list[str]:
    """`words` behind those of `defaults`, pairs of an option and its value, that they do not name themselves."""
    named = {word.partition("=")[0] for word in words}
    pairs = zip(defaults[::2], defaults[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in named for word in pair), *words]
