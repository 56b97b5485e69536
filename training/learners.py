"""What changes the weights: Muon for the matrices of layers, AdamW for all others; rates are functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from training.recipe import Recipe

CLIP = 1.0
"""Gradients longer than this are shortened to it."""


class Schedule(NamedTuple):
    """A stage of `steps`: rates rise over the first share of them, and fall to nothing over the last."""

    steps: int
    warmup: float
    cooldown: float

    def share(self, step: int) -> float:
        """Of the full rate, in step 0 .. steps - 1."""
        rising = (step + 1) / max(1.0, self.warmup * self.steps)
        falling = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return min(1.0, rising, falling)


class Learner:
    """The optimisers of a model's parameters, each with its full rate; those frozen at first begin in step `thaw`."""

    def __init__(
        self,
        model: Any,
        optimisers: Sequence[torch.optim.Optimizer],
        schedule: Schedule,
        frozen: Sequence[torch.nn.Parameter] = (),
        thaw: int = 0,
    ) -> None:
        self.schedule = schedule
        self._optimisers = optimisers
        self._frozen = frozen
        self._thaw = thaw
        self._names = {id(each): name for name, each in model.named_parameters()}
        self._rates = [[group["lr"] for group in each.param_groups] for each in optimisers]

    def prepare(self, step: int) -> None:
        """To be called before a step's forward pass: what is frozen needs no gradients."""
        for each in self._frozen:
            each.requires_grad_(step >= self._thaw)

    def learn(self, step: int) -> None:
        """Change the weights by their gradients, which are gone afterwards."""
        share = self.schedule.share(step)
        groups = [group for each in self._optimisers for group in each.param_groups]
        torch.nn.utils.clip_grad_norm_([each for group in groups for each in group["params"]], CLIP)
        for optimiser, rates in zip(self._optimisers, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """What the optimisers remember, as "parameter/what"."""
        return {
            f"{self._names[id(parameter)]}/{what}": value
            for optimiser in self._optimisers
            for parameter, kept in optimiser.state.items()
            for what, value in kept.items()
        }

    def load_state(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state()`; the tensors are taken over."""
        by_name: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in kept.items():
            parameter, _, what = name.rpartition("/")
            by_name.setdefault(parameter, {})[what] = value
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    if (found := by_name.get(self._names[id(parameter)])) is not None:
                        optimiser.state[parameter] = found


def dense_learner(model: Any, recipe: Recipe, steps: int, gain: float) -> Learner:
    """Of a dense model, at `gain` times the recipe's rates."""
    named = dict(model.named_parameters())
    inner = [name for name, each in named.items() if each.ndim == 2 and ".layers." in name]
    muon = torch.optim.Muon([named[name] for name in inner], lr=gain * recipe.muon_rate, weight_decay=recipe.muon_decay)
    others = [each for name, each in named.items() if name not in inner]
    return Learner(model, (muon, _adam([{"params": others, "lr": gain * recipe.adam_rate}])), _schedule(recipe, steps))


def sparse_learner(model: Any, recipe: Recipe) -> Learner:
    """Of an upcycled model: at first it learns only what the dense one has not, and the norms of that."""
    routers: list[torch.nn.Parameter] = []
    experts: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, each in model.named_parameters():
        kept = any(part in name for part in ("self_attn", "embed_tokens", "lm_head", "input_layernorm"))
        (rest if kept else routers if ".gate." in name else experts).append(each)
    rate = recipe.expert_rate
    adam = _adam(
        [
            {"params": experts, "lr": rate},
            {"params": routers, "lr": rate * recipe.router_gain},
            {"params": rest, "lr": rate * recipe.thawed_gain},
        ]
    )
    steps = recipe.upcycle_steps
    return Learner(model, (adam,), _schedule(recipe, steps), rest, round(recipe.frozen * steps))


def _adam(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _schedule(recipe: Recipe, steps: int) -> Schedule:
    return Schedule(steps, recipe.warmup, recipe.cooldown)
