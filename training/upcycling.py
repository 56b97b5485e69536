"""A Mixture-of-Experts model from a dense one (sparse upcycling, arXiv 2212.05055): experts begin as copies of the MLP.

With equal experts the model computes what the dense one does, whatever its routers say.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.decoding.layer_map import draft_norms
from engine.moe.layers import find_moe_layers
from training.models import empty_sparse
from training.recipe import Recipe


def upcycle(dense: Any, recipe: Recipe, sample: torch.Tensor) -> Any:
    """The target that begins as `dense`, float32.

    Experts get `recipe.noise` on top of their copy, and routers are drawn to suit the states that `dense` has on
    `sample`, token ids int64 [windows, tokens].
    """
    generator = torch.Generator().manual_seed(recipe.seed_of("upcycle"))
    model = empty_sparse(recipe)
    common = {name: each for name, each in dense.state_dict().items() if ".mlp." not in name}
    missing = model.load_state_dict(common, strict=False)
    assert not missing.unexpected_keys
    states = router_states(dense, sample)
    with torch.no_grad():
        for layer in find_moe_layers(model):
            mlp = dense.model.layers[layer.decoder_layer].mlp
            copies = {
                "gate_up_proj": torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
                "down_proj": mlp.down_proj.weight,
            }
            for name, each in layer.expert_parameters().items():
                noise = torch.randn(each.shape, generator=generator) * (recipe.noise * copies[name].std())
                each.copy_(copies[name] + noise)
            router: Any = layer.router.module
            router.weight.copy_(draw_router(states[layer.decoder_layer], recipe.experts, recipe.liveliness, generator))
    return model


@torch.inference_mode()
def router_states(dense: Any, sample: torch.Tensor) -> list[torch.Tensor]:
    """What the MLP of each layer is given, and so a router in its place: float32 [tokens, hidden] per layer."""
    states: list[torch.Tensor] = []

    def keep(_norm: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        states.append(output.flatten(0, 1).clone())

    hooks = [norm.register_forward_hook(keep) for norm in draft_norms(dense)]
    try:
        dense(input_ids=sample)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def draw_router(states: torch.Tensor, experts: int, liveliness: float, generator: torch.Generator) -> torch.Tensor:
    """A random router [experts, hidden] whose logits on `states` [tokens, hidden] have mean 0, are uncorrelated and
    deviate by `liveliness`.

    States share a large mean and a few strong directions.  A router drawn without regard to them prefers the same
    experts for all tokens, most of all in layer 0, where states are little more than token ids.
    """
    wide = states.double()
    mean = wide.mean(0)
    # Only directions across the mean: along it a router without bias would tell all tokens the same.
    unit = mean / mean.norm().clamp_min(1e-12)
    across = (wide - mean) - ((wide - mean) @ unit)[:, None] * unit
    values, vectors = torch.linalg.eigh(across.T @ across / len(across))
    # The strongest directions: of weak ones draft and target need not agree.
    strongest = values.argsort(descending=True)[: min(4 * experts, len(values) - 1)]
    scaled = vectors[:, strongest] * values[strongest].clamp_min(1e-12).rsqrt()
    # Rows are orthogonal, so logits are uncorrelated.
    mixed, _ = torch.linalg.qr(torch.randn(len(strongest), experts, generator=generator, dtype=torch.float64))
    router: torch.Tensor = (liveliness * (scaled @ mixed).T).float()
    return router
