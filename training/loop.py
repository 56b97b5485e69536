"""The training loop: steps, and states of them that it can go on from to the same weights, bit for bit.

It draws no random numbers: a step is a function of the weights, what the optimisers remember, and its own number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from engine.moe.layers import find_moe_layers
from spmoe.errors import InputError
from training.learners import Learner
from training.recipe import Recipe
from training.routers import balance_loss, record_routing, z_loss
from training.states import Row, State, read_state, write_state
from training.tokens import Batches


class Job(NamedTuple):
    """A stage of training.

    It changes `model`; its first step reads the windows of step `first` of `batches`.  States go to `path`; `run` says
    what they belong to.
    """

    model: Any
    learner: Learner
    batches: Batches
    first: int
    path: Path
    run: str
    recipe: Recipe


Watch = Callable[[Row], None]
"""Told of every step that is done, and of the last one of a state that is gone on from; what it raises ends the run."""


def train(job: Job, watch: Watch) -> tuple[Row, ...]:
    """All steps that are not done yet; returns what is written down of every step."""
    steps = job.learner.schedule.steps
    done = read_state(job.path, job.run)
    curve: list[Row] = []
    if done is not None:
        try:
            job.model.load_state_dict(done.weights)
        except RuntimeError:
            raise InputError(f"{job.path}: damaged: not all weights are there, or they are of another model") from None
        job.learner.load_state(done.memory)
        curve += done.curve
        watch(curve[-1])  # so that it knows where the run stands
        if done.step == steps:
            return done.curve
    job.model.train()
    for step in range(len(curve), steps):
        job.learner.prepare(step)
        loss, row = _loss(job, step)
        loss.backward()
        job.learner.learn(step)
        curve.append(row)
        if (step + 1) % job.recipe.save_every == 0 or step + 1 == steps:
            state = State(step + 1, job.model.state_dict(), job.learner.state(), tuple(curve))
            write_state(job.path, state, job.run)
        watch(row)
    return tuple(curve)


def _loss(job: Job, step: int) -> tuple[torch.Tensor, Row]:
    """What the step is to make smaller, and what is written down of it."""
    windows = job.batches.at(job.first + step)
    layers = find_moe_layers(job.model)
    with record_routing(layers) as routings:
        logits = job.model(input_ids=windows[:, :-1]).logits
    loss = cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    if not layers:
        return loss, Row(step, loss.item(), None)
    balance = torch.stack([balance_loss(each) for each in routings])
    total = loss + job.recipe.balance * balance.sum()
    total = total + job.recipe.router_z * torch.stack([z_loss(each) for each in routings]).sum()
    return total, Row(step, loss.item(), balance.mean().item())
