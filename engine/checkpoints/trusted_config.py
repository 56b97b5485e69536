"""A model's configuration as data: what is read of `config.json`, and what is left out because it names code.

transformers takes a configuration for orders: it imports kernels, looks for modules and opens files that fields of it
name.  Here `config.json` is read as JSON, and the configuration object is built of the fields that describe a model.
Nothing else ever sees the file.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from engine.checkpoints.checkpoint import read_json
from engine.checkpoints.refusing import refusing
from spmoe.errors import InputError

_NAMES_OF_CODE: Final = frozenset(
    {
        # Classes and functions in a repository.
        "auto_map",
        "custom_generate",
        "custom_pipelines",
        # Kernels: a repository's name makes transformers download and import one.
        "attn_impl",
        "attn_implementation",
        "experts_implementation",
        "kernel_config",
        "use_kernels",
        # Other files and models.  `timm_kwargs` go to a function of another library.
        "backbone",
        "backbone_kwargs",
        "base_model_name_or_path",
        "extra_config_files",
        "extra_files",
        "index_path",
        "name_or_path",
        "passages_path",
        "timm_kwargs",
        "transformers_weights",
        "use_pretrained_backbone",
        "use_timm_backbone",
        # Classes to be looked up by name.
        "processor_class",
        "tokenizer_class",
    }
)
"""Fields left out wherever they stand, whatever they hold: a model can be built without them."""

_QUANTISATION: Final = ("quantization_config", "compression_config")
_DTYPES: Final = ("dtype", "torch_dtype")
_PLAIN: Final = re.compile(r"[\w ,*+-]*")
"""Text that is neither a path, nor a repository's name with its owner, nor a dotted name."""


def read_config(folder: Path) -> Any:
    """The configuration of the model in `folder`, without what names code, repositories or other files.

    Raises InputError for model types that transformers does not know, quantised weights, adapters, and values that the
    type's configuration does not take.
    """
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder / 'adapter_config.json'}: adapters are not supported; expected a whole model, with its adapter "
            "merged into the weights"
        )
    path = folder / "config.json"
    given = read_json(path)
    config_class = _config_class(given, path)
    _refuse_quantisation(given, path)
    cleaned = _clean_config(given, config_class, path)
    with refusing(f"{folder}: config.json cannot be loaded"):
        return config_class.from_dict(cleaned, name_or_path=str(folder))


def _config_class(given: dict[str, Any], path: Path) -> Any:
    family = given.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        code = " and has code of its own (auto_map), which is never run" if "auto_map" in given else ""
        raise InputError(f"{path}: model type {family!r} is unknown to transformers{code}")
    # AutoConfig does so, too: only the other class knows layers of several types.
    return CONFIG_MAPPING["ministral" if family == "mistral" and "layer_types" in given else family]


def _refuse_quantisation(given: dict[str, Any], path: Path) -> None:
    """Also where it stands in the configuration of a part: transformers looks there."""
    for field in _QUANTISATION:
        if given.get(field):
            method = given[field].get("quant_method") if isinstance(given[field], dict) else given[field]
            raise InputError(f"{path}: quantisation {_shown(method)} is not supported; expected plain weights")
    for each in given.values():
        if isinstance(each, dict):
            _refuse_quantisation(each, path)


def _clean_config(given: dict[str, Any], config_class: Any, path: Path) -> dict[str, Any]:
    """What passes of a configuration, or a part's, of that class."""
    cleaned = {}
    known, parts = _known_fields(config_class), config_class.sub_configs
    for name, value in given.items():
        if name in _NAMES_OF_CODE or _is_internal(name, config_class, known):
            continue
        if _names_place(value) or (name not in known and not _is_plain(value)):
            continue
        if name in _DTYPES:
            _check_dtype(name, value, path)
        if name in parts and isinstance(value, dict):
            cleaned[name] = _clean_config(value, _part_class(parts[name], value), path)
        elif name == "per_layer_config" and isinstance(value, dict):
            cleaned[name] = {
                layer: _clean_config(each, config_class, path) if isinstance(each, dict) else each
                for layer, each in value.items()
            }
        else:
            cleaned[name] = _clean(value)
    return cleaned


def _clean(value: Any) -> Any:
    """`value` without names of code in any object inside it."""
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])  # So does transformers write what JSON has no number for.
    return {
        name: _clean(each)
        for name, each in value.items()
        if name.removeprefix("_").removesuffix("_internal") not in _NAMES_OF_CODE
    }


def _known_fields(config_class: Any) -> frozenset[str]:
    """Fields that the class declares or takes under another name."""
    declared = {field.name for field in fields(config_class)} if is_dataclass(config_class) else set()
    settable = {
        name
        for base in config_class.__mro__
        for name, each in vars(base).items()
        if isinstance(each, property) and each.fset is not None
    }
    # In lists and objects alone these hold words: kinds of rotary embedding.
    return frozenset(declared | settable | set(config_class.attribute_map) | {"rope_scaling", "rope_parameters"})


def _is_internal(name: str, config_class: Any, known: frozenset[str]) -> bool:
    """Whether it would replace something of the class that is no field of a configuration: a method, a constant."""
    return name.startswith("_") or (name != "model_type" and name not in known and hasattr(config_class, name))


def _names_place(value: Any) -> bool:
    """Whether it is text of a path, an address or a repository with its owner: fields of a model hold words."""
    return isinstance(value, str) and not set("/:\\").isdisjoint(value)


def _is_plain(value: Any) -> bool:
    """Whether no text in it could name code: many published fields that a class does not declare are numbers or words,
    and some of them count."""
    if isinstance(value, str):
        return _PLAIN.fullmatch(value) is not None
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, dict) or all(map(_is_plain, value.values()))


def _part_class(part: Any, given: dict[str, Any]) -> Any:
    """The class of a part's configuration: it may depend on what the part says that it is."""
    if issubclass(part, PreTrainedConfig):
        return part
    family = given.get("model_type")
    return CONFIG_MAPPING[family] if isinstance(family, str) and family in CONFIG_MAPPING else PreTrainedConfig


def _check_dtype(name: str, value: Any, path: Path) -> None:
    """transformers takes it for the name of anything in torch."""
    if value is not None and not (isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)):
        raise InputError(f"{path}: field {name}: expected a number format such as 'bfloat16', got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
