"""`generation_config.json` as data: numbers, flags and tokens; what names code or other models is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

from engine.checkpoints.checkpoint import read_json
from engine.checkpoints.refusing import refusing
from spmoe.errors import InputError

_FILE: Final = "generation_config.json"
_WHOLE: Final = "a whole number"
_NUMBER: Final = "a number"
_FLAG: Final = "true or false"
_EXPECTED: Final = {
    "eos_token_id": "numbers of tokens",
    **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id", "top_k", "num_beams"), _WHOLE),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size"), _WHOLE),
    **dict.fromkeys(("temperature", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _NUMBER),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), _NUMBER),
    **dict.fromkeys(("do_sample", "use_cache", "output_attentions", "output_hidden_states"), _FLAG),
    "_from_model_config": _FLAG,
}
"""The fields that are read, each with what it holds unless it is null."""


def read_generation_config(folder: Path) -> Any:
    """What `generation_config.json` in `folder` says, None where there is none.

    Raises InputError, naming the field, where one that is read holds something else than it should.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    given = {name: value for name, value in read_json(path).items() if name in _EXPECTED and value is not None}
    for name, value in given.items():
        if not _holds(_EXPECTED[name], value):
            shown = repr(value)[:60]
            raise InputError(f"{path}: field {name}: expected {_EXPECTED[name]}, got {shown}")
    with refusing(f"{path}: cannot be loaded"):
        return GenerationConfig(**given)


def _holds(expected: str, value: Any) -> bool:
    if expected == _FLAG:
        return isinstance(value, bool)
    if expected == _NUMBER:
        return type(value) in (int, float)
    if expected == _WHOLE:
        return type(value) is int
    return all(type(each) is int for each in (value if isinstance(value, list) else [value]))
