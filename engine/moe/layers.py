"""Where the experts of a transformers model are, found by what modules offer and not by the model's name.

All families that transformers runs through its experts interface hold the routed experts of a layer in one module with
stacked parameters `[experts, ...]`, beside the router that chooses among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from engine.memory.layout import Layout
from engine.moe.router import Router, find_router
from spmoe.errors import InputError
from spmoe.machine.geometry import Geometry

_TOP_K: Final = ("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_topk", "moe_k")


@dataclass(frozen=True, slots=True, eq=False)
class MoeLayer:
    """One layer with routed experts.

    `index` counts these layers only, from 0; `decoder_layer` counts all.  `name` is the dotted name of `experts`.
    `norm` is what the residual stream after attention goes through on its way to the router; None where that cannot be
    asked about other states than the layer's own: the family calls its norm otherwise than all known ones do, or its
    router looks at more than states.
    """

    index: int
    decoder_layer: int
    name: str
    experts: Any  # a module; transformers does not tell the types of its attributes
    router: Router
    norm: torch.nn.Module | None

    def top_k(self, config: Any) -> int:
        """Experts per token: as the router says, or else the model's text configuration, for all layers or each."""
        if self.router.top_k is not None:
            return self.router.top_k
        found = next(value for name in _TOP_K if (value := getattr(config, name, None)) is not None)
        return int(found[self.decoder_layer] if isinstance(found, list | tuple) else found)

    def expert_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The stacked parameters by name: those whose first dimension counts the experts."""
        count: int = self.experts.num_experts
        own = self.experts.named_parameters(recurse=False)
        return {name: each for name, each in own if each.ndim > 1 and each.shape[0] == count}

    def layout(self) -> Layout:
        """How one expert of this layer lies in its blob."""
        stacked = self.expert_parameters()
        return Layout.of({name: (tuple(each.shape[1:]), each.dtype) for name, each in stacked.items()})

    def forecast(self, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the router would say to states [T, hidden] of a residual stream after attention, this layer's or not.

        Returns experts (int64) [T, top_k] by rank, and the gate's probabilities of them (float32) [T, top_k].
        """
        assert self.norm is not None
        logits, _, experts = self.router.route(self.norm(residual))
        return experts, logits.float().softmax(-1).gather(1, experts)

    def drop_experts(self) -> None:
        """Leaves the experts without parameters of their own: they live in the host store and in slots."""
        for name in self.expert_parameters():
            delattr(self.experts, name)
        self.experts._is_hf_initialized = True  # transformers would look for them to fill them with noise


def find_moe_layers(model: torch.nn.Module) -> tuple[MoeLayer, ...]:
    """The MoE layers of `model` in the order of computation; none for a dense model."""
    layers: list[MoeLayer] = []
    for name, module in model.named_modules():
        if is_experts(module):
            block = name.rpartition(".")[0]
            router = find_router(model.get_submodule(block))
            norm = attention_norm(model.get_submodule(block.rpartition(".")[0])) if router.top_k else None
            number = next((int(part) for part in reversed(name.split(".")) if part.isdigit()), len(layers))
            layers.append(MoeLayer(len(layers), number, name, module, router, norm))
    return tuple(layers)


def attention_norm(decoder_layer: torch.nn.Module) -> torch.nn.Module | None:
    """The norm behind a decoder layer's attention: its input is the residual stream that the layer's MLP sees."""
    # Where attention has norms on both sides, the MLP has one of its own.
    norm = getattr(decoder_layer, "pre_feedforward_layernorm", getattr(decoder_layer, "post_attention_layernorm", None))
    return norm if isinstance(norm, torch.nn.Module) else None


def is_experts(module: torch.nn.Module) -> bool:
    """Whether `module` takes part in the experts interface (`transformers.integrations.moe`)."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_gate", "num_experts"))


def expert_layout(layers: tuple[MoeLayer, ...]) -> Layout:
    """The layout that all experts share; InputError where layers differ in their experts' number or shapes."""
    first, layout = layers[0], layers[0].layout()
    for layer in layers:
        if layer.experts.num_experts != first.experts.num_experts or layer.layout() != layout:
            raise InputError(f"{layer.name}: expected experts as in {first.name}, of the same number and shapes")
    return layout


def read_geometry(model: Any, name: str, source: str) -> Geometry:
    """The geometry of a whole model (on any device, meta too; not a hollow one): parameters counted, not estimated.

    Shared tensors count once.  Raises InputError for a model without routed experts.
    """
    layers = find_moe_layers(model)
    if not layers and any(path.endswith("experts") for path, _ in model.named_modules()):
        raise InputError(
            f"{source}: the routed experts of {type(model).__name__} are computed by code of its own, outside "
            "transformers' experts interface, which the engine cannot take over"
        )
    if not layers or not layers[0].experts.num_experts:
        raise InputError(f"{source}: {type(model).__name__} has no routed experts; expected a Mixture-of-Experts model")
    expert_layout(layers)
    config = model.config.get_text_config()
    experts = sum(each.numel() for layer in layers for each in layer.expert_parameters().values())
    keys = len(layers) * layers[0].experts.num_experts
    return Geometry(
        name=name,
        layers=len(layers),
        experts=layers[0].experts.num_experts,
        top_k=layers[0].top_k(config),
        expert_params=experts // keys,
        dense_params=sum(each.numel() for each in model.parameters()) - experts,
        hidden=config.hidden_size,
        kv_bytes_per_token=2 * config.num_hidden_layers * kv_values(config),
        draft=None,
        source=source,
    )


def kv_values(config: Any) -> int:
    """Numbers that a layer caches for one token."""
    latent: int | None = getattr(config, "kv_lora_rank", None)
    if latent is not None:  # latent attention caches the compressed vector and the rotary key
        return latent + int(config.qk_rope_head_dim)
    queries: int = config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or config.hidden_size // queries
    return 2 * head * _kv_heads(config, queries)


def _kv_heads(config: Any, queries: int) -> int:
    """Heads whose keys and values are cached; a family without a field for them caches those of every query head."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(heads or queries)
