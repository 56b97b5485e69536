"""A tokenizer as data: loaded from a copy of its folder that holds vocabularies, templates and plain fields alone.

`tokenizer_config.json` may name code (`auto_map`), files anywhere (`vocab_file`, ...) and arguments of constructors,
and what transformers makes of them differs from version to version.  So it is given a folder of links to the files that
tokenizers consist of, beside a `tokenizer_config.json` without such fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.checkpoints.checkpoint import read_json
from engine.checkpoints.refusing import refusing
from engine.checkpoints.trusted_config import read_config
from spmoe.errors import InputError

_SIGNS: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_CONFIG: Final = "tokenizer_config.json"
_TEMPLATES: Final = "additional_chat_templates"
_KINDS: Final = frozenset({".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt"})
"""Of files that a tokenizer may read.  None of them is a pickle or a program."""
_OTHERS: Final = frozenset({"adapter_config.json", "config.json", "generation_config.json", _CONFIG})
_NAMES_OF_CODE: Final = frozenset(
    {
        "auto_map",
        "cache_dir",
        "config",
        "gguf_file",
        "init_inputs",
        "is_local",
        "local_files_only",
        "merges",
        "name_or_path",
        "post_processor",
        "processor_class",
        "revision",
        "subfolder",
        "token",
        "tokenizer_object",
        "trust_remote_code",
        "vocab",
    }
)
_ENDS_OF_CODE: Final = ("_dir", "_file", "_files", "_kwargs", "_path")
_CLASS: Final = re.compile(r"(?!Auto)\w*(Tokenizer|TokenizerFast|Backend)")
_NO_CODE: Final = "code.None"
"""What is said to be in `auto_map` where a tokenizer has code of its own: transformers asks, and is told not to."""


def find_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, None where there is none; InputError for one that cannot be loaded."""
    there = any((folder / name).is_file() for name in _SIGNS)
    return load_tokenizer(folder) if there else None


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in `folder`; InputError where there is none or it needs code of its own."""
    folder = Path(folder)
    given = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    config, model = read_config(folder), read_json(folder / "config.json")
    _check_class(given.get("tokenizer_class"), folder / _CONFIG)
    _check_class(model.get("tokenizer_class"), folder / "config.json")
    if model.get("tokenizer_class") is not None:
        config.tokenizer_class = model["tokenizer_class"]
    fields = _clean(given, folder)
    # One thing is looked up there: whether an older release wrote a tokenizer with a fault.
    known = {name: model[name] for name in ("model_type", "transformers_version") if isinstance(model.get(name), str)}
    with _plain_copy(folder, {_CONFIG: fields, "config.json": known}) as copy:
        try:
            with refusing(f"{folder}: tokenizer cannot be loaded"):
                found = AutoTokenizer.from_pretrained(
                    copy, config=config, local_files_only=True, trust_remote_code=False
                )
        except InputError as error:
            if "custom code which must be executed" in str(error):
                raise InputError(
                    f"{folder / _CONFIG}: field auto_map: the tokenizer has code of its own, which is never run"
                ) from None
            raise InputError(str(error).replace(str(copy), str(folder))) from None
        if not isinstance(found, PreTrainedTokenizerBase):
            raise InputError(f"{folder}: tokenizer cannot be loaded: it is a {type(found).__name__}")
        _move(found, str(copy), str(folder))
    return found


def _check_class(name: Any, path: Path) -> None:
    """transformers takes it for the name of anything that it has."""
    if name is not None and not (isinstance(name, str) and _CLASS.fullmatch(name)):
        raise InputError(f"{path}: field tokenizer_class: expected a tokenizer's class, got {repr(name)[:60]}")


def _clean(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of `tokenizer_config.json` that pass."""
    fields = {
        name: value
        for name, value in given.items()
        if name not in _NAMES_OF_CODE and not name.startswith("_") and not name.endswith(_ENDS_OF_CODE)
    }
    own = given.get("auto_map")
    own = own.get("AutoTokenizer") if isinstance(own, dict) else own
    if own:
        # A tokenizer that transformers knows is chosen otherwise where the checkpoint has one of its own.
        fields["auto_map"] = {"AutoTokenizer": [_NO_CODE, _NO_CODE]}
    versions = given.get("fast_tokenizer_files")
    if isinstance(versions, list) and all(isinstance(each, str) and Path(each).name == each for each in versions):
        fields["fast_tokenizer_files"] = versions
    return fields


@contextmanager
def _plain_copy(folder: Path, written: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """A folder with links to what a tokenizer may read of `folder`, and with the objects in `written` as JSON."""
    with TemporaryDirectory(prefix="spmoe-tokenizer-") as place:
        copy = Path(place)
        for path in folder.iterdir():
            if path.suffix in _KINDS and path.name not in _OTHERS and path.is_file():
                (copy / path.name).symlink_to(path.resolve())
        if (folder / _TEMPLATES).is_dir():
            (copy / _TEMPLATES).mkdir()
            for path in (folder / _TEMPLATES).glob("*.jinja"):
                (copy / _TEMPLATES / path.name).symlink_to(path.resolve())
        for name, fields in written.items():
            (copy / name).write_text(json.dumps(fields), encoding="utf-8")
        yield copy


def _move(tokenizer: Any, copy: str, folder: str) -> None:
    """Leaves nothing in `tokenizer` that names `copy`, which is gone when it is used."""
    for names in (vars(tokenizer), tokenizer.init_kwargs):
        for name, value in names.items():
            if isinstance(value, str | Path) and str(value).startswith(copy):
                names[name] = folder + str(value).removeprefix(copy)
