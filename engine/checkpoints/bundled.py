"""The pair of models that comes with the project: a small one, trained on the source of Python's standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from spmoe.errors import InputError

NAME: Final = "pico"
ABOUT: Final = "a small pair trained on Python's standard library; it shows the machinery, it does not write programs"
EXAMPLE: Final = "def read_lines(path):"
"""A text that it goes on from where none is given."""

_PACKAGE: Final = Path(__file__).parents[1]
# A wheel carries the models inside the package; a checkout has them at its top, where people look for them.
_MODELS: Final = next(
    (folder for folder in (_PACKAGE / "models", _PACKAGE.parent / "models") if folder.is_dir()), _PACKAGE / "models"
)


class Pair(NamedTuple):
    """The checkpoint folders of a target and its draft."""

    target: Path
    draft: Path


def bundled_pair() -> Pair:
    """The folders of the pair; InputError where this installation lacks them."""
    pair = Pair(_MODELS / NAME / "target", _MODELS / NAME / "draft")
    for folder in pair:
        if not folder.is_dir():
            raise InputError(f"{folder}: the pair that comes with the project is missing; expected --model PATH")
    return pair
