"""Loading a model without its experts, and its experts without the model.

The model is built hollow: its expert modules have no parameters, so nothing is allocated for them, not even for a
moment.  The experts go from the checkpoint's mapped files straight into the blobs of the host store.  The peak of
anonymous memory is therefore one model.

All is read from a local folder; no code from it runs, and nothing is asked of other machines: transformers is given
configurations and tensors, and never the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from engine.checkpoints.checkpoint import Checkpoint, model_name, read_checkpoint, unread_index
from engine.checkpoints.generation_fields import read_generation_config
from engine.checkpoints.refusing import refusing
from engine.checkpoints.trusted_config import read_config
from engine.checkpoints.weight_map import WeightMap, map_weights, write_piece
from engine.memory.host_store import HostStore, require_memory
from engine.memory.layout import Layout
from engine.moe.layers import expert_layout, find_moe_layers, read_geometry
from spmoe.errors import InputError
from spmoe.machine.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that is known of a model before any of its weights is read.

    `shell` is the whole model on the meta device; `dtype` that of the loaded weights (those that a family keeps wider
    stay so); `dense_bytes` the size of all that is not a routed expert.
    """

    checkpoint: Checkpoint
    shell: Any
    dtype: torch.dtype
    geometry: Geometry
    layout: Layout
    weight_map: WeightMap
    dense_bytes: int

    @property
    def host_bytes(self) -> int:
        """Host memory for the whole model: the experts' blobs and the rest."""
        return self.geometry.keys * self.layout.size + self.dense_bytes

    def check_memory(self, available: int | None = None) -> None:
        """InputError where `available` bytes of host memory are too little for the model; None asks the system."""
        kind = str(self.dtype).removeprefix("torch.")
        require_memory(self.host_bytes, available, f"{self.checkpoint.folder}: the weights of the model in {kind}")


def read_blueprint(folder: str | Path, dtype: torch.dtype) -> Blueprint:
    """What `folder` holds, from its configuration and the headers of its files.

    Raises InputError for a model that is not supported (no experts, quantised, needing code of its own) and for files
    that are missing, truncated, or hold other experts than the configuration says.
    """
    folder = Path(folder)
    shell = read_shell(folder, dtype)
    geometry = read_geometry(shell, model_name(folder), str(folder / "config.json"))
    layers = find_moe_layers(shell)
    checkpoint = read_checkpoint(folder)
    weight_map = map_weights(checkpoint, shell, layers)
    layout = expert_layout(layers)
    whole = sum(each.nbytes for each in chain(shell.parameters(), shell.buffers()))
    return Blueprint(checkpoint, shell, dtype, geometry, layout, weight_map, whole - geometry.keys * layout.nbytes)


def load_rest(blueprint: Blueprint) -> Any:
    """The hollow model: everything but the routed experts, on the CPU and in memory of its own.

    Raises InputError where tensors are missing or have other shapes than the configuration says.
    """
    checkpoint, names = blueprint.checkpoint, blueprint.weight_map.rest
    model = fill_model(_hollow(type(blueprint.shell)), blueprint.shell, checkpoint, names, blueprint.dtype)
    model.__class__ = type(blueprint.shell)
    return model


def fill_model(
    model_class: Any, shell: Any, checkpoint: Checkpoint, names: Iterable[str], dtype: torch.dtype, **options: Any
) -> Any:
    """A model of that class, as `shell` (whole, on the meta device) is configured, with the tensors of these names, on
    the CPU and in memory of its own.

    `options` are transformers' for loading.  Raises InputError where tensors are missing or have other shapes than the
    configuration says.
    """
    folder = checkpoint.folder
    with checkpoint.slices() as slices, refusing(f"{folder}: the model cannot be loaded"):
        model, report = model_class.from_pretrained(
            None,
            config=shell.config,
            state_dict={name: slices[name] for name in names},
            dtype=dtype,
            ignore_mismatched_sizes=True,  # reported below, in one line
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        # What needed no conversion is still a view of a mapped file, which may be replaced or leave the page cache.
        with torch.no_grad():
            for tensor in chain(model.parameters(), model.buffers()):
                tensor.data = tensor.data.clone()
    _check_loaded(shell, report, folder)
    model.name_or_path = model.config.name_or_path = str(folder)
    generation = read_generation_config(folder)
    if generation is not None:
        model.generation_config = generation
    return model


def _check_loaded(model: Any, report: Mapping[str, Any], folder: Path) -> None:
    """InputError where transformers' `report` says that the tensors in `folder` are not those of `model` (whole, on any
    device).

    Other parts may lie beside them, which only other uses of a checkpoint need: towers, heads, layers that predict.
    """
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(f"{folder}: tensor {name}: expected shape {list(expected)}, got {list(found)}")
    for name in sorted(report["missing_keys"]):
        raise InputError(f"{folder}: no tensor for {name}{unread_index(folder)}")
    for name in _stray(model, report["unexpected_keys"]):
        raise InputError(f"{folder}: tensor {name}: the model in config.json has none of that name")


def _stray(model: Any, unexpected: Iterable[str]) -> Iterator[str]:
    """Those that belong to layers of `model`, or to layers like them which it should have."""
    prefix = f"{model.base_model_prefix}.layers."
    own = [name.removeprefix(prefix).partition(".") for name in model.state_dict() if name.startswith(prefix)]
    numbers, kinds = {number for number, _, _ in own}, {kind for _, _, kind in own}
    found: dict[str, set[str]] = {}
    for name in sorted(unexpected):
        if name.startswith(prefix):
            number, _, kind = name.removeprefix(prefix).partition(".")
            found.setdefault(number, set()).add(kind)
    for number, of_layer in found.items():
        # Layers that predict further tokens have more in them than any other.
        if number in numbers or of_layer <= kinds:
            yield from (f"{prefix}{number}.{kind}" for kind in sorted(of_layer))


def load_experts(blueprint: Blueprint, store: HostStore) -> None:
    """Copies all experts from the checkpoint's files into `store`, file by file in the order of their bytes."""
    experts = blueprint.geometry.experts
    with blueprint.checkpoint.slices() as slices:
        for piece in blueprint.weight_map.pieces:
            for key, row in piece.targets(experts):
                write_piece(piece, slices[piece.name], blueprint.layout.views(store.blob(key)), row)


def read_shell(folder: Path, dtype: torch.dtype) -> Any:
    """The whole model on the meta device, from the configuration alone.

    Raises InputError for what is not supported: quantised weights, models of other kinds, code of their own.
    """
    path = folder / "config.json"
    config = read_config(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{path}: model type {config.model_type!r} is no causal language model")
    with refusing(f"{path}: no model can be built from it"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _hollow(model_class: Any) -> Any:
    """`model_class`, but its models drop their experts as soon as they are built (on the meta device)."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        for layer in find_moe_layers(self):
            layer.drop_experts()

    # transformers looks up how to convert a checkpoint by the name and the module of the class.
    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})
