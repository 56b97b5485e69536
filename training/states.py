"""Where a stage stands, in one safetensors file: weights, what the optimisers remember, and JSON for the rest.

One file that replaces the one before in one step: a process that is killed leaves one state or the next, never half.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from spmoe.errors import InputError
from spmoe.files import atomic_write

_WEIGHTS: Final = "weights/"
_MEMORY: Final = "memory/"
_META: Final = "state"


class Row(NamedTuple):
    """What is written down of a step: nats per token, and of a sparse model the mean balance loss per layer."""

    step: int
    loss: float
    balance: float | None


class State(NamedTuple):
    """`step` steps are done.  `weights` by parameter, `memory` as from `Learner.state`."""

    step: int
    weights: Mapping[str, torch.Tensor]
    memory: Mapping[str, torch.Tensor]
    curve: tuple[Row, ...]


def write_state(path: Path, state: State, run: str) -> None:
    """Writes `state`; `run` says of which run it is a state."""
    tensors = {_WEIGHTS + name: each for name, each in state.weights.items()}
    tensors |= {_MEMORY + name: each for name, each in state.memory.items()}
    # One entry, since safetensors writes several in any order.
    metadata = {_META: json.dumps({"run": run, "step": state.step, "curve": state.curve})}
    # Copies, since safetensors refuses tensors that share memory.
    content = save({name: each.detach().contiguous().clone() for name, each in tensors.items()}, metadata)
    with atomic_write(path, binary=True) as stream:
        stream.write(content)


def read_state(path: Path, run: str) -> State | None:
    """The state in `path`; None where there is none.  InputError for that of another run and for a damaged file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if metadata["run"] != run:
            raise InputError(f"{path}: expected a state of this stage and run, got another")
        curve = tuple(Row(*row) for row in metadata["curve"])
        if not curve or [row.step for row in curve] != list(range(metadata["step"])):
            raise InputError(f"{path}: damaged: expected {metadata['step']} steps, at least one, one by one")
        return State(
            metadata["step"],
            {name.removeprefix(_WEIGHTS): each for name, each in tensors.items() if name.startswith(_WEIGHTS)},
            {name.removeprefix(_MEMORY): each for name, each in tensors.items() if name.startswith(_MEMORY)},
            curve,
        )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged, or no state of a training run: {error}") from None
