"""Models of which only the configuration is known: random weights stand in, since time does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from engine.checkpoints.bundled import NAME as SHIPPED
from engine.checkpoints.bundled import bundled_pair
from engine.checkpoints.checkpoint import model_name
from engine.checkpoints.hub_cache import find_folder as find_in_cache
from engine.checkpoints.loader import read_shell
from engine.checkpoints.model_pair import describe_draft, describe_target, require_folder
from engine.checkpoints.refusing import quiet
from engine.decoding.layer_map import match_layers
from engine.decoding.session import Weights
from engine.memory.host_store import SharedStore, available_memory, require_memory
from engine.memory.layout import Layout
from engine.memory.out_of_memory import oom_as_input_error
from engine.moe.layers import expert_layout, find_moe_layers, read_geometry
from engine.profiling.calibration import Subject
from engine.profiling.trace_runner import Bench
from spmoe.errors import InputError
from spmoe.machine.units import format_size
from spmoe.state.keys import Shape
from spmoe.trace.schema import DraftShape, ModelShape

_CONFIGS: Final = Path(__file__).parents[1] / "configs"
_SEED: Final = 0
_SCALE: Final = 0.02
"""Of weights: as transformers fills them, so that no number leaves its range."""
_SHARE: Final = 0.8
"""Of the memory that is left, for experts: the rest is for what a run needs besides."""


def model_names() -> tuple[str, ...]:
    """Models that are known by name."""
    return tuple(sorted([folder.name for folder in _CONFIGS.iterdir() if folder.is_dir()] + [*_shipped()]))


def find_folder(name: str) -> Path:
    """The folder with the configuration of the model called `name`, of this path, or in the hub's cache.

    Raises InputError where there is none.
    """
    folder = _shipped().get(name, _CONFIGS / name)
    if Path(name).name == name and folder.is_dir():
        return folder
    folder = find_in_cache(name)
    if not folder.is_dir():
        raise InputError(
            f"model {name!r} is unknown; expected a folder with its config.json, or one of {', '.join(model_names())}"
        )
    require_folder(folder)
    return folder


class BlankPair(NamedTuple):
    """A target and a draft as their configurations say, before any memory is taken.

    `layout` is that of the target's experts; `layer_map` and `why` as in `Bench`; `next_gate`: whether a router can be
    asked about the layer before its own.
    """

    target: Path
    draft: Path
    dtype: torch.dtype
    model: ModelShape
    draft_model: DraftShape
    layout: Layout
    layer_map: tuple[int, ...] | None
    why: str
    next_gate: bool
    dense_bytes: int
    draft_bytes: int

    @classmethod
    def read(cls, target: str, draft: str, dtype: torch.dtype) -> BlankPair:
        """The models of these names or folders; InputError for what is unknown, not supported, or does not fit."""
        folders = find_folder(target), find_folder(draft)
        shell, drafts = (read_shell(folder, dtype) for folder in folders)
        geometry = read_geometry(shell, model_name(folders[0]), str(folders[0] / "config.json"))
        layers = find_moe_layers(shell)
        layout = expert_layout(layers)
        config = shell.config.get_text_config()
        if (vocabulary := config.vocab_size) != (other := drafts.config.get_text_config().vocab_size):
            raise InputError(
                f"draft {draft}: expected a vocabulary of {vocabulary} tokens, as {target} has, got {other}"
            )
        layer_map, why = match_layers(layers, config.num_hidden_layers, config.hidden_size, drafts, None)
        whole = sum(each.nbytes for each in shell.parameters())
        return cls(
            *folders,
            dtype,
            describe_target(geometry),
            describe_draft(drafts, model_name(folders[1])),
            layout,
            layer_map,
            why,
            all(layer.norm is not None for layer in layers),
            whole - geometry.keys * layout.nbytes,
            sum(each.nbytes for each in drafts.parameters()),
        )

    @property
    def bits(self) -> int:
        """Per weight."""
        return 8 * int(self.dtype.itemsize)

    @property
    def keys(self) -> int:
        """The target's experts."""
        return self.model.layers * self.model.experts

    def build(self, device: torch.device, host_memory: int | None = None) -> Subject:
        """The models on `device`, and as many distinct experts as memory allows, in host memory and on the device.

        `host_memory` is how many bytes of host memory may be taken (None: what is available).  Raises InputError
        where that is too little for the models and one layer's experts, or the device is.
        """
        host = available_memory() if host_memory is None else host_memory
        cpu = device.type == "cpu"
        room = None if host is None else int(_SHARE * host)
        if room is not None and cpu:
            require_memory(self.dense_bytes + self.draft_bytes, room, f"the weights of {self.target} and {self.draft}")
            # As much for slots, and as much again for those that a study has at the same time.
            room = (room - self.dense_bytes - self.draft_bytes) // 3
        distinct = self._distinct(room, "host memory")
        with oom_as_input_error(device, "choose another --model or --draft"):
            draft = _build(self.draft, self.dtype, device, hollow=False)
            target = _build(self.target, self.dtype, device, hollow=True)
        store = SharedStore(self.layout, self.keys, distinct, not cpu, host_memory)
        _fill(store, distinct)
        bench = Bench(
            Weights(target, draft, store),
            self.layout,
            Shape(self.model.layers, self.model.experts, self.model.top_k),
            self.layer_map,
            self.why,
            device,
            self.dtype,
        )
        if not cpu:
            # Half, as a study has slots of its own beside those of a measurement.
            distinct = self._distinct(int(_SHARE * torch.cuda.mem_get_info(device)[0]) // 2, str(device))
        return Subject(bench, self.model, self.draft_model, distinct)

    def _distinct(self, room: int | None, where: str) -> int:
        """How many experts get memory of their own in `room` bytes."""
        if room is None:
            return self.keys
        if room < self.model.experts * self.layout.size:
            raise InputError(
                f"{where}: expected room for the {self.model.experts} experts of a layer of {self.model.name}, "
                f"{format_size(self.model.experts * self.layout.size)}, got {format_size(max(0, room))}"
            )
        return min(self.keys, room // self.layout.size)


def _shipped() -> dict[str, Path]:
    """The folders of the pair that comes with the project, by the names of its models."""
    try:
        pair = bundled_pair()
    except InputError:
        return {}
    return {f"{SHIPPED}-{folder.name}": folder for folder in pair}


def _build(folder: Path, dtype: torch.dtype, device: torch.device, *, hollow: bool) -> Any:
    """The model on `device`, filled with noise as transformers does; a hollow one has no experts.

    What is hollow never has them: a layer's may be larger than the device.
    """
    shell = read_shell(folder, dtype)
    # What is the default for experts knows no float64.
    experts = "eager" if dtype is torch.float64 else None
    with ExitStack() as stack:
        if hollow:
            for experts_class in {type(layer.experts) for layer in find_moe_layers(shell)}:
                stack.enter_context(_on_meta(experts_class))
        stack.enter_context(quiet())
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(device)
        torch.manual_seed(_SEED)
        model = AutoModelForCausalLM.from_config(
            shell.config, dtype=dtype, experts_implementation=experts, trust_remote_code=False
        )
    if hollow:
        for layer in find_moe_layers(model):
            layer.drop_experts()
    return model.eval()


@contextmanager
def _on_meta(module_class: Any) -> Iterator[None]:
    """Modules of this class that are built meanwhile take no memory."""
    build = module_class.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.device("meta"):
            build(self, *args, **kwargs)

    module_class.__init__ = __init__
    try:
        yield
    finally:
        module_class.__init__ = build


def _fill(store: SharedStore, distinct: int) -> None:
    """Noise for one expert, which all others get, too."""
    generator = torch.Generator().manual_seed(_SEED)
    first = store.blob(0).zero_()
    for values in store.layout.views(first).values():
        values.uniform_(-_SCALE, _SCALE, generator=generator)
    for number in range(1, distinct):
        store.blob(number).copy_(first)
