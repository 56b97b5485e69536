"""Losses and entropies of routers, solved by hand."""

from __future__ import annotations

import math

import pytest
import torch

from engine.moe.layers import find_moe_layers
from engine.moe.router import Routing
from training.models import empty_sparse
from training.recipe import MICRO
from training.routers import balance_loss, entropy, record_routing, route_at_random, usage, z_loss
from training.upcycling import draw_router


def routing(probabilities: list[list[float]], experts: list[list[int]]) -> Routing:
    return Routing(torch.tensor(probabilities).log(), torch.empty(0), torch.tensor(experts))


def test_the_balance_loss_is_1_where_all_experts_are_used_alike() -> None:
    even = routing([[0.5, 0.5], [0.5, 0.5]], [[0], [1]])
    assert balance_loss(even).item() == pytest.approx(1)


def test_the_balance_loss_of_a_lopsided_layer() -> None:
    # Shares of choices 3/4, 1/4, 0, 0; mean probabilities 0.5, 0.3, 0.1, 0.1: 4 x (0.375 + 0.075) = 1.8.
    lopsided = routing([[0.6, 0.2, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]], [[0, 1], [0, 0]])
    assert balance_loss(lopsided).item() == pytest.approx(1.8)


def test_layers_that_are_lopsided_in_opposite_ways_do_not_make_up_for_each_other() -> None:
    one, other = routing([[0.9, 0.1]], [[0]]), routing([[0.1, 0.9]], [[1]])
    assert balance_loss(one).item() == balance_loss(other).item() == pytest.approx(1.8)
    pooled = routing([[0.9, 0.1], [0.1, 0.9]], [[0], [1]])
    assert balance_loss(pooled).item() == pytest.approx(1)


def test_the_balance_loss_moves_probability_to_experts_that_are_used_less() -> None:
    logits = torch.zeros(3, 2, requires_grad=True)
    balance_loss(Routing(logits, torch.empty(0), torch.tensor([[0], [0], [1]]))).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all()


def test_the_z_loss_is_the_mean_square_of_log_sum_exp() -> None:
    each = Routing(torch.tensor([[0.0, 0.0], [3.0, 3.0]]), torch.empty(0), torch.empty(0))
    assert z_loss(each).item() == pytest.approx((math.log(2) ** 2 + (3 + math.log(2)) ** 2) / 2)


def test_entropy_is_that_of_a_share_of_the_largest() -> None:
    assert entropy(usage(torch.tensor([[0, 1], [2, 3]]), 4)) == pytest.approx(1)
    assert entropy(usage(torch.tensor([[2, 2]]), 4)) == 0
    # Two of four experts: half of the bits.
    assert entropy(usage(torch.tensor([[0, 1], [1, 0]]), 4)) == pytest.approx(0.5)
    assert entropy(torch.tensor([0.5, 0.25, 0.25, 0.0])) == pytest.approx(1.5 / 2)


def test_fresh_routers_use_all_experts_even_where_states_share_a_large_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    strengths = torch.logspace(1, -2, 32)
    states = 20 + torch.randn(4000, 32, generator=generator) * strengths
    router = draw_router(states, 4, 1.5, generator)
    logits = states @ router.T
    assert logits.mean(0).abs().max() < 0.01
    assert torch.allclose(logits.T.cov(), 2.25 * torch.eye(4), atol=0.05)
    assert entropy(usage(logits.topk(2).indices, 4)) > 0.99
    careless = states @ (torch.randn(4, 32, generator=generator) * 32**-0.5).T
    assert entropy(usage(careless.topk(2).indices, 4)) < 0.9


def test_routing_at_random_draws_distinct_experts_and_ends_with_its_block() -> None:
    model = empty_sparse(MICRO).eval()
    layers = find_moe_layers(model)
    tokens = torch.arange(64).view(2, 32)
    with torch.inference_mode(), record_routing(layers) as routings:
        model(input_ids=tokens)
        own = [each.experts for each in routings]
        routings.clear()
        with route_at_random(layers, torch.Generator().manual_seed(0)):
            drawn = model(input_ids=tokens).logits
        routings.clear()
        again = model(input_ids=tokens).logits
        assert all(torch.equal(a, b.experts) for a, b in zip(own, routings, strict=True))
    assert not torch.equal(drawn, again)
