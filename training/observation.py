"""A draft and a target that read the same text, and what goes on behind the attention of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from engine.decoding.layer_map import draft_norms, match_layers
from engine.moe.layers import MoeLayer, find_moe_layers
from engine.moe.router import Routing
from spmoe.errors import InputError
from training.likelihood import BATCH
from training.routers import record_routing


class LayerStates(NamedTuple):
    """One MoE layer of the target and the layer of the draft that matches it, over T tokens.

    `routing`: what the target's router says.  `residual`, `draft_residual`: the residual streams behind attention,
    [T, hidden], which the norm before the router reads.  `attention`, `draft_attention`: what attention adds to them.
    """

    routing: Routing
    residual: torch.Tensor
    draft_residual: torch.Tensor
    attention: torch.Tensor
    draft_attention: torch.Tensor


class Pass(NamedTuple):
    """Both models on `windows`, int64 [windows, context + 1]; logits [windows, context, vocabulary].

    The T = windows x context tokens of `layers` stand window by window.
    """

    windows: torch.Tensor
    draft_logits: torch.Tensor
    target_logits: torch.Tensor
    layers: tuple[LayerStates, ...]

    @property
    def tokens(self) -> torch.Tensor:
        """What the models read, int64 [T]."""
        return self.windows[:, :-1].flatten()

    @property
    def first(self) -> torch.Tensor:
        """Whether a token is the first of its window, [T]."""
        inputs = self.windows[:, :-1]
        return (torch.arange(inputs.shape[1]) == 0).expand(inputs.shape).flatten()


def observe(draft: Any, target: Any, windows: torch.Tensor) -> Iterator[Pass]:
    """Both models on `windows`, some at a time; run it in inference mode.

    InputError where the layers of the two do not match.
    """
    layers = find_moe_layers(target)
    config = target.config
    matching, why = match_layers(layers, config.num_hidden_layers, config.hidden_size, draft, None)
    if matching is None:
        raise InputError(f"draft and target do not match: {why}")
    norms, draft_normed = [layer.norm for layer in layers], draft_norms(draft)
    attentions = [target.model.layers[layer.decoder_layer].self_attn for layer in layers]
    with (
        record_routing(layers) as routings,
        _kept(norms, [draft_normed[number] for number in matching], inputs=True) as residuals,
        _kept(attentions, [draft.model.layers[number].self_attn for number in matching], inputs=False) as attended,
    ):
        for part in windows.split(BATCH):
            # Before each pass, since reading one may call norms and routers, which is recorded too.
            for each in (routings, *residuals, *attended):
                each.clear()
            draft_logits, target_logits = (model(input_ids=part[:, :-1]).logits for model in (draft, target))
            states = zip(routings, *residuals, *attended, strict=True)
            yield Pass(part, draft_logits, target_logits, tuple(LayerStates(*each) for each in states))


def experts_used(target: Any, windows: torch.Tensor) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
    """The tokens that `target` reads, int64 [T], and per MoE layer the experts that it uses, int64 [T, k]; some of
    `windows`, int64 [windows, context + 1], at a time; run it in inference mode."""
    layers: Sequence[MoeLayer] = find_moe_layers(target)
    with record_routing(layers) as routings:
        for part in windows.split(BATCH):
            target.model(input_ids=part[:, :-1])
            yield part[:, :-1].flatten(), tuple(each.experts for each in routings)
            routings.clear()


Kept = tuple[list[torch.Tensor], list[torch.Tensor]]


@contextmanager
def _kept(modules: Sequence[Any], others: Sequence[Any], *, inputs: bool) -> Iterator[Kept]:
    """What goes into modules, or else comes out of them, [T, hidden] each, in the order of computation; two lists."""
    kept: Kept = ([], [])
    hooks = []
    for found, group in zip(kept, (modules, others), strict=True):

        def keep(
            _module: torch.nn.Module, given: tuple[Any, ...], output: Any, found: list[torch.Tensor] = found
        ) -> None:
            states: torch.Tensor = given[0] if inputs else output[0]
            found.append(states.flatten(0, -2))

        hooks += [module.register_forward_hook(keep) for module in group]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
