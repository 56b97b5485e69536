"""What a run's folder says that its weights follow from: run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.checkpoints.checkpoint import read_json
from spmoe.errors import InputError
from training.corpus import Corpus
from training.recipe import Recipe


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the run in `folder`."""
    return Recipe.from_json(_object(folder, "recipe"), str(folder / "run.json"))


def check_corpus(folder: Path, corpus: Corpus) -> None:
    """InputError unless the run in `folder` learned from `corpus`: what it held out of another is unknown."""
    known = _object(folder, "corpus")
    if known.get("sha256") != corpus.fingerprint:
        raise InputError(
            f"{folder}: trained on {known.get('name')}, sha256 {known.get('sha256')}; "
            f"this is {corpus.name}, sha256 {corpus.fingerprint}"
        )


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A field of run.json."""
    path = folder / "run.json"
    found = read_json(path).get(name)
    if not isinstance(found, dict):
        raise InputError(f"{path}: field {name}: expected an object")
    return found
