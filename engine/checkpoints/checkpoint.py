"""A checkpoint folder: which safetensors file holds which tensor, checked from the headers before any is read.

Pickle files (.bin, .pt) can run code as they load and are refused; nothing but safetensors is ever opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from spmoe.errors import InputError
from spmoe.files import reason

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_CACHED: Final = "models--"
_PARTS: Final = ("draft", "target")
_FLOATS: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class StoredTensor(NamedTuple):
    """A tensor in a file.  `dtype` is None where the file stores something else than 16- to 64-bit floats."""

    shard: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of `folder` by name, shard by shard and in the order in which they lie in the files."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    @contextmanager
    def slices(self) -> Iterator[Mapping[str, Any]]:
        """The tensors as safetensors slices, by name: `slices[name][...]` reads one, `[3]` its fourth row.

        What they give are views of the mapped files, valid only as long as those are not replaced.
        """
        with ExitStack() as stack:
            shards = {tensor.shard for tensor in self.tensors.values()}
            files = {shard: stack.enter_context(_open(shard)) for shard in sorted(shards)}
            yield {name: files[tensor.shard].get_slice(name) for name, tensor in self.tensors.items()}


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`: `model.safetensors`, or the files named in `model.safetensors.index.json`.  Where
    both are there, the former counts, as in transformers.

    Raises InputError for a missing or truncated file, for an index that names tensors its files do not hold, and for a
    folder with pickle files only.
    """
    if (folder / _SINGLE).is_file():
        return Checkpoint(folder, _read_shard(folder / _SINGLE))
    if not (folder / _INDEX).is_file():
        raise InputError(f"{folder}: {_what_is_there(folder)}")
    listed = _read_index(folder / _INDEX)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(listed.values())):
        held = _read_shard(folder / shard)
        tensors.update((name, tensor) for name, tensor in held.items() if listed.get(name) == shard)
    for name, shard in listed.items():
        if name not in tensors:
            raise InputError(f"{folder / shard}: tensor {name} is missing; {_INDEX} says that it is here")
    return Checkpoint(folder, tensors)


def unread_index(folder: Path) -> str:
    """The end of a message about weights that are missing: which files were read, where two could have been."""
    both = (folder / _SINGLE).is_file() and (folder / _INDEX).is_file()
    return f"; {_SINGLE} was read, and not the files in {_INDEX} beside it" if both else ""


def model_name(folder: Path) -> str:
    """What the model in `folder` is called: as its repository where it is a snapshot in the hub's cache, else as the
    folder is, behind the name of the one around it where it only tells the model's part in a pair."""
    folder = folder.resolve()
    repository = repository_of(folder)
    if repository is not None:
        return repository
    return f"{folder.parent.name}-{folder.name}" if folder.name in _PARTS else folder.name


def repository_of(folder: Path) -> str | None:
    """`X/Y` where `folder` is `models--X--Y` in the hub's cache, or a snapshot in it."""
    around = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not around.name.startswith(_CACHED):
        return None
    return around.name.removeprefix(_CACHED).replace("--", "/", 1)


def missing_files(folder: Path) -> list[str]:
    """Files that should be in `folder` and are not: configuration, weights, and what a link leads to."""
    if (folder / _SINGLE).is_file() or not (folder / _INDEX).is_file():
        expected = {_SINGLE}
    else:
        expected = set(_read_index(folder / _INDEX).values())
    there = {path.name for path in folder.iterdir()}
    broken = {name for name in there if not (folder / name).exists()}
    if _SINGLE in expected and _SINGLE not in there:
        # Weights of another kind are another fault.
        expected = set() if any(Path(name).suffix in _PICKLES for name in there) else expected
    return sorted(broken | ({"config.json", *expected} - there))


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`; InputError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: expected JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return content


def _read_index(path: Path) -> dict[str, str]:
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{path}: field weight_map: expected the tensors and their files")
    for shard in listed.values():
        # An index may not lead out of its folder.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{path}: field weight_map: expected names of .safetensors files, got {shard!r}")
    return listed


def _read_shard(path: Path) -> dict[str, StoredTensor]:
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return {
            name: StoredTensor(path, tuple(each.get_shape()), _FLOATS.get(each.get_dtype()))
            for name, each in slices.items()
        }


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: file is missing; {_INDEX} names it")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or no safetensors file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None


def _what_is_there(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        return f"{pickles[0]} is a pickle, which can run code and is never opened; expected {_SINGLE} or {_INDEX}"
    return f"expected {_SINGLE} or {_INDEX}"
