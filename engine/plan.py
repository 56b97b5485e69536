"""What a run will be like: everything that can be decided, and refused, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.chat_template import encode_messages
from engine.checkpoints.checkpoint import model_name, read_checkpoint
from engine.checkpoints.generation_fields import read_generation_config
from engine.checkpoints.loader import Blueprint, read_blueprint, read_shell
from engine.checkpoints.model_pair import (
    describe_draft,
    describe_target,
    require_folder,
)
from engine.checkpoints.tokenizer_files import find_tokenizer
from engine.decoding.kv_cache import lasting_layers
from engine.decoding.layer_map import match_layers
from engine.decoding.positions import has_learned_positions, trained_positions
from engine.decoding.sampling import Sampling
from engine.device import bits_of, resolve_device, resolve_dtype
from engine.draft_fit import check_rollback, check_vocabularies, usable_draft
from engine.earlier_run import EarlierRun
from engine.memory.host_store import require_memory
from engine.memory.out_of_memory import oom_as_input_error
from engine.moe.backend import check_kernel
from engine.moe.layers import MoeLayer, find_moe_layers
from engine.options import CONTEXT, CPU_CACHE, NGRAM, Options
from spmoe.errors import InputError
from spmoe.machine.units import format_size
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import fallback as stand_in
from spmoe.policy.registry import recipe as find_recipe
from spmoe.run.applicability import cpu_obstacle
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.trace.schema import DraftShape, Header, Source


class TooLong(InputError):
    """A request needs more positions than a model has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Models, policy and room of a run.

    `draft` is the draft's folder; `layer_map` as in `DraftModel`; `fallback` says why `recipe` is not the one asked
    for, and `notes` what else is not as may be expected.  `tokenizer` is None where the model has none; `sampling` is
    what its generation_config.json says.  `draft_bytes`
    is what the draft takes in memory.
    """

    device: torch.device
    dtype: torch.dtype
    blueprint: Blueprint
    draft: Path | None
    draft_shape: DraftShape | None
    draft_bytes: int
    layer_map: tuple[int, ...] | None
    ngram: bool
    tokenizer: Any
    sampling: Sampling
    recipe: Recipe
    fallback: str
    notes: tuple[str, ...]
    setting: Setting
    config: SchedulerConfig
    context: int
    earlier_run: EarlierRun
    options: Options

    @property
    def slot_bytes(self) -> int:
        """What the slots take on the device."""
        return self.setting.slots * self.blueprint.layout.size

    def header(self, source: Source, tokens: int) -> Header:
        """The header of a trace of this run."""
        return _header(self.blueprint, self.draft_shape, self.context, source, tokens)

    def check_memory(self) -> None:
        """InputError where host memory is too little for models and, on the CPU, slots."""
        needed, what = self.blueprint.host_bytes, f"the weights of {self.blueprint.checkpoint.folder}"
        if self.device.type == "cpu":
            needed += self.slot_bytes + self.draft_bytes
            what += f", {self.setting.slots} slots" + ("" if self.draft is None else f" and {self.draft}")
        require_memory(needed, self.options.resolve_host_memory(), what)

    def oom_as_input_error(self) -> AbstractContextManager[None]:
        """Where memory runs out in the block, an InputError says which budget to lower."""
        room = "--vram, --cache or --slots" if self.device.type == "cuda" else "--cache or --slots"
        taken = f"slots for {self.setting.slots} experts take {format_size(self.slot_bytes)} of it"
        return oom_as_input_error(self.device, f"{taken}; lower {room}, or give a shorter prompt")

    def encode(
        self,
        prompt: str | Sequence[int] | None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of `prompt` (text, or ids), or of `messages` in the model's chat template.

        Raises InputError for both or neither, and where there is no tokenizer for text.
        """
        if (prompt is None) == (messages is None):
            raise InputError("prompt: expected one, or messages")
        if messages is not None:
            return encode_messages(self.tokenizer, messages, template_arguments)
        if not isinstance(prompt, str):
            return list(map(int, prompt or ()))
        if self.tokenizer is None:
            raise InputError(f"{self.blueprint.checkpoint.folder}: expected a tokenizer for a prompt that is text")
        return list(self.tokenizer(prompt)["input_ids"])

    def check_request(self, prompt: Sequence[int], new_tokens: int) -> None:
        """InputError for a prompt that is empty or has unknown tokens, and for more tokens than there is room for."""
        if new_tokens < 1:
            raise InputError(f"max_new_tokens: expected at least 1, got {new_tokens}")
        if not prompt:
            raise InputError("prompt: expected at least one token")
        vocabulary: int = self.blueprint.shell.config.get_text_config().vocab_size
        for token in prompt:
            if not 0 <= token < vocabulary:
                raise InputError(f"prompt: expected token ids within 0..{vocabulary - 1}, got {token}")
        if len(prompt) + new_tokens > self.context:
            raise InputError(
                f"context: room is reckoned for {self.context} tokens, got {len(prompt)} of prompt and {new_tokens} new"
            )


def make_plan(model: Path, draft: Path | None, options: Options) -> Plan:
    """Reads configurations and file headers, no weights.  Raises InputError for whatever cannot be run."""
    device = resolve_device(options)
    dtype = resolve_dtype(options, device)
    hardware = options.resolve_hardware()
    options.resolve_host_memory()
    for folder in (model, draft):
        if folder is not None:
            require_folder(folder)
    blueprint = read_blueprint(model, dtype)
    layers = find_moe_layers(blueprint.shell)
    check_kernel(options.kernel, layers, blueprint.layout, device, str(model))
    tokenizer = find_tokenizer(model)
    draft, stateful = usable_draft(draft, blueprint)
    ngram = options.ngram and not lasting_layers(blueprint.shell)
    shell = None if draft is None else read_shell(draft, dtype)
    for name, length in (("gamma", options.gamma), ("gamma_max", options.gamma_max)):
        if shell is None and length and not (stateful or options.ngram):
            raise InputError(f"{name}: expected a draft model to draft {length} tokens with, got none")
    notes: tuple[str, ...] = ()
    if draft is not None:
        read_checkpoint(draft)  # Its files are there and whole: better known now than when the target is loaded.
        notes = check_vocabularies(blueprint.shell, shell, tokenizer, draft)
        check_rollback(shell, draft)
    shape = None if draft is None else describe_draft(shell, model_name(draft))
    if ngram:
        shape = DraftShape(NGRAM, 0, 0, 0)
    layer_map, why = _match(layers, blueprint.shell, shell, options)
    recipe, fallback = _choose(options, layers, layer_map, why)
    context, beyond = _context(options, model, blueprint.shell)
    setting = resolve_setting(
        _header(blueprint, shape, context, Source("recorded", "", "", ""), 1),
        context,
        RunOptions(
            hardware=hardware,
            bits=bits_of(dtype),
            gamma=0 if shape is None else options.gamma,
            gamma_max=None if shape is None else options.gamma_max,
            cpu_experts=options.cpu_experts,
            **_room(options, device),
        ),
    )
    least = recipe.placement.least(setting.shape)
    if setting.slots < least:
        raise InputError(f"policy {recipe.name}: needs at least {least} slots, and there are {setting.slots}")
    if (lacking := cpu_obstacle(recipe, setting)) is not None:
        raise InputError(f"policy {recipe.name}: {lacking}")
    config, _ = setting.configure(recipe, options.cutoff)
    return Plan(
        device=device,
        dtype=dtype,
        blueprint=blueprint,
        draft=draft,
        draft_shape=shape,
        draft_bytes=0 if shell is None else sum(each.nbytes for each in shell.parameters()),
        layer_map=layer_map,
        tokenizer=tokenizer,
        sampling=Sampling.of_checkpoint(read_generation_config(model), str(model / "generation_config.json")),
        recipe=recipe,
        fallback=fallback,
        ngram=ngram,
        notes=(*notes, *filter(None, (stateful, beyond))),
        setting=setting,
        config=config,
        context=context,
        earlier_run=EarlierRun(recipe, setting.shape, setting.gamma, options.earlier),
        options=options,
    )


def _header(blueprint: Blueprint, draft: DraftShape | None, context: int, source: Source, tokens: int) -> Header:
    return Header(describe_target(blueprint.geometry), draft, source, tokens, context=context)


def _room(options: Options, device: torch.device) -> dict[str, Any]:
    """Room for experts as asked for, else half of them on the CPU and all free memory on a GPU."""
    room: dict[str, Any] = {"vram": options.vram, "cache": options.cache, "slots": options.slots}
    if any(each is not None for each in room.values()):
        return room
    return {"cache": CPU_CACHE} if device.type == "cpu" else {"vram": torch.cuda.mem_get_info(device)[0]}


def _context(options: Options, model: Path, shell: Any) -> tuple[int, str]:
    """Tokens of the longest request, as asked for, and what is to be said of it.

    As plain transformers does, a model goes on behind the positions that it is made for, unless they are a table.
    """
    limit = trained_positions(shell.config)
    if options.context is None:
        return (CONTEXT if limit is None else min(CONTEXT, limit)), ""
    if options.context < 2:
        raise InputError(f"context: expected at least 2 tokens, got {options.context}")
    if limit is None or options.context <= limit:
        return options.context, ""
    if has_learned_positions(shell):
        raise TooLong(
            f"{model}: the model has positions for {limit} tokens, expected no more than that of prompt and output, "
            f"got {options.context}"
        )
    return options.context, f"{model}: the model is made for {limit:,} positions; what lies behind may make no sense"


def _match(
    layers: tuple[MoeLayer, ...], target: Any, draft: Any, options: Options
) -> tuple[tuple[int, ...] | None, str]:
    """The layer map, or why there is none."""
    if draft is None:
        if options.layer_map is not None:
            raise InputError("layer map: expected a draft whose layers can be matched, got none")
        return None, "there is no draft"
    config = target.config.get_text_config()
    return match_layers(layers, config.num_hidden_layers, config.hidden_size, draft, options.layer_map)


def _choose(
    options: Options, layers: tuple[MoeLayer, ...], layer_map: tuple[int, ...] | None, why: str
) -> tuple[Recipe, str]:
    """The recipe asked for, or the one that it falls back to, and why."""
    asked = find_recipe(options.policy)
    if not (asked.lossless or options.lossy):
        raise InputError(f"policy {asked.name}: changes the model's output; --lossy (lossy=True) allows it")
    missing = {}
    if layer_map is None:
        missing["draft"] = why
    if any(layer.norm is None for layer in layers):
        missing["next_gate"] = "the norm behind attention was not found"
    if not asked.needs & missing.keys():
        return asked, ""
    reason = "; ".join(missing[name] for name in sorted(asked.needs & missing.keys()))
    instead = stand_in(asked, missing.keys())
    if instead is None:
        raise InputError(f"policy {asked.name}: needs forecasts that are not to be had: {reason}")
    return instead, f"{instead.name} stands in for {asked.name}: {reason}"
