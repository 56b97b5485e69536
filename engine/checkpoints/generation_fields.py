"""`generation_config.json` as data: numbers, flags and tokens; what names code or other models is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

from engine.checkpoints.checkpoint import read_json
from engine.checkpoints.refusing import refusing
from spmoe.errors import InputError

_FILE: Final = "generation_config.json"
_TOKENS: Final = ("eos_token_id",)
_WHOLE: Final = ("bos_token_id", "decoder_start_token_id", "max_length", "max_new_tokens", "min_length")
_WHOLE_TOO: Final = ("min_new_tokens", "no_repeat_ngram_size", "num_beams", "pad_token_id", "top_k")
_NUMBERS: Final = ("epsilon_cutoff", "eta_cutoff", "length_penalty", "min_p", "repetition_penalty", "temperature")
_NUMBERS_TOO: Final = ("top_h", "top_p", "typical_p")
_FLAGS: Final = ("do_sample", "output_attentions", "output_hidden_states", "use_cache", "_from_model_config")
_EXPECTED: Final = {
    **dict.fromkeys(_TOKENS, "numbers of tokens"),
    **dict.fromkeys((*_WHOLE, *_WHOLE_TOO), "a whole number"),
    **dict.fromkeys((*_NUMBERS, *_NUMBERS_TOO), "a number"),
    **dict.fromkeys(_FLAGS, "true or false"),
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
    if expected == "true or false":
        return isinstance(value, bool)
    if expected == "a number":
        return type(value) in (int, float)
    if expected == "a whole number":
        return type(value) is int
    return all(type(each) is int for each in (value if isinstance(value, list) else [value]))
