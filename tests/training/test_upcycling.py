"""What an upcycled model begins as."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.moe.layers import find_moe_layers
from training.comparison import compare
from training.learners import Schedule, sparse_learner
from training.likelihood import loss
from training.models import fresh_dense
from training.predictors import learn_tables
from training.recipe import MICRO
from training.specialisation import expert_cosine, randomly_routed_loss
from training.upcycling import upcycle

TOKENS = torch.randint(0, MICRO.vocabulary, (8, MICRO.context + 1), generator=torch.Generator().manual_seed(0))


def test_without_noise_it_computes_what_the_dense_model_does() -> None:
    dense = fresh_dense(MICRO).eval()
    sparse = upcycle(dense, replace(MICRO, noise=0.0), TOKENS[:, :-1]).eval()
    with torch.inference_mode():
        assert torch.allclose(dense(input_ids=TOKENS).logits, sparse(input_ids=TOKENS).logits, atol=1e-5, rtol=0)


def test_rope_theta_is_the_same_in_both() -> None:
    dense = fresh_dense(MICRO)
    sparse = upcycle(dense, MICRO, TOKENS[:, :-1])
    assert dense.config.rope_parameters == sparse.config.rope_parameters
    assert torch.equal(dense.model.rotary_emb.inv_freq, sparse.model.rotary_emb.inv_freq)


def test_noise_makes_experts_differ_by_as_much_as_it_says() -> None:
    dense = fresh_dense(MICRO)
    # Copies with independent noise of a share s of their deviation: cosine 1 / (1 + s^2).
    for noise, cosine in ((0.0, 1.0), (0.5, 0.8), (1.0, 0.5)):
        for layer in find_moe_layers(upcycle(dense, replace(MICRO, noise=noise), TOKENS[:, :-1])):
            assert expert_cosine(layer) == pytest.approx(cosine, abs=0.02)


def test_of_a_pair_without_noise_the_draft_foresees_everything() -> None:
    dense = fresh_dense(MICRO).eval()
    sparse = upcycle(dense, replace(MICRO, noise=0.0), TOKENS[:, :-1]).eval()
    compared = compare(dense, sparse, TOKENS, learn_tables(sparse, TOKENS))
    assert compared.draft_loss == pytest.approx(compared.target_loss, abs=1e-5)
    assert compared.agreement == pytest.approx(1, abs=0.01)
    assert compared.overlap == pytest.approx(1, abs=1e-4)
    for layer in compared.layers:
        drafted = layer.predictors["draft"]
        assert drafted.top1_exact == pytest.approx(1, abs=0.01) and drafted.recall == pytest.approx(1, abs=0.01)
        assert layer.entropy > 0.9 and sum(layer.usage) == pytest.approx(1)
        assert layer.norm == pytest.approx(layer.draft_norm, rel=1e-4)
        assert layer.attention_cosine == pytest.approx(1, abs=1e-4)
        assert layer.router_cosine == pytest.approx(1, abs=1e-4)
    accuracy = compared.layers[0].predictors
    assert accuracy["popularity"].recall < accuracy["token_table"].recall <= 1


def test_random_routing_costs_nothing_where_experts_are_equal() -> None:
    dense = fresh_dense(MICRO).eval()
    for noise, differs in ((0.0, False), (1.0, True)):
        sparse = upcycle(dense, replace(MICRO, noise=noise), TOKENS[:, :-1]).eval()
        usual = loss(sparse, TOKENS)
        for layers in (find_moe_layers(sparse), find_moe_layers(sparse)[1:]):
            cost = randomly_routed_loss(sparse, layers, TOKENS, seed=0) - usual
            assert (abs(cost) > 1e-4) == differs
        assert loss(sparse, TOKENS) == usual


def test_what_the_draft_has_too_is_frozen_until_it_thaws() -> None:
    model = upcycle(fresh_dense(MICRO), MICRO, TOKENS[:, :-1])
    learner = sparse_learner(model, MICRO)
    learner.prepare(6)
    frozen = {name.split(".")[-2] for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "input_layernorm"}
    learner.prepare(7)  # 0.7 of 10 steps
    assert all(each.requires_grad for each in model.parameters())


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [Schedule(10, 0.2, 0.4).share(step) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
