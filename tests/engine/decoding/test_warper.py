"""Warping is transformers', rule by rule; penalties by hand; options checked."""
# ruff: noqa: E402

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from transformers import GenerationConfig
from transformers.generation import logits_process as theirs

from engine.decoding.distribution import Distribution
from engine.decoding.sampling import Sampling
from engine.decoding.warper import EMPTY, History, Warper
from spmoe.errors import InputError

IDS = 50
TOKENS = [3, 7, 3, 9, 11, 7, 7]


def logits(seed: int) -> Any:
    return 3 * torch.randn(IDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(found: Distribution) -> Any:
    return found.at(torch.arange(IDS))


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 0.6}, [theirs.TemperatureLogitsWarper(0.6)]),
        ({"top_k": 7}, [theirs.TopKLogitsWarper(7)]),
        ({"top_k": 500}, [theirs.TopKLogitsWarper(500)]),
        ({"top_p": 0.8}, [theirs.TopPLogitsWarper(0.8)]),
        ({"top_p": 0.01}, [theirs.TopPLogitsWarper(0.01)]),
        ({"min_p": 0.2}, [theirs.MinPLogitsWarper(0.2)]),
        ({"repetition_penalty": 1.4}, [theirs.RepetitionPenaltyLogitsProcessor(1.4)]),
        ({"repetition_penalty": 0.7}, [theirs.RepetitionPenaltyLogitsProcessor(0.7)]),
        ({"min_tokens": 9}, [theirs.MinLengthLogitsProcessor(99, [5, 6], "cpu")]),
        (
            {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
            [
                theirs.RepetitionPenaltyLogitsProcessor(1.2),
                theirs.TemperatureLogitsWarper(1.3),
                theirs.TopKLogitsWarper(20),
                theirs.TopPLogitsWarper(0.9),
                theirs.MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_each_rule_is_that_of_transformers(options: dict[str, Any], processors: list[Any]) -> None:
    warper = Warper(Sampling(**{"temperature": 1.0, **options}), {5, 6})
    for seed in range(20):
        expected = logits(seed)[None]
        for processor in processors:
            expected = processor(torch.tensor([TOKENS]), expected)
        found = dense(warper.distribution(logits(seed), History(TOKENS, 4)))
        assert torch.allclose(found, expected.softmax(-1)[0], atol=1e-12)


def test_of_equals_at_the_border_of_top_k_none_is_left_out() -> None:
    row = torch.tensor([1.0, 2.0, 1.0, 0.0])
    found = Warper(Sampling(temperature=1.0, top_k=2)).distribution(row)
    assert found.ids is not None and found.ids.tolist() == [0, 1, 2]


def test_presence_and_frequency_count_the_output_alone() -> None:
    """Behind a prompt of 3, 7, 3, 9 the output is 11, 7, 7."""
    row = torch.zeros(IDS, dtype=torch.float64)
    found = Warper(Sampling(presence_penalty=0.5, frequency_penalty=0.25)).processed(row, History(TOKENS, 4))
    assert {token: value for token, value in enumerate(found.tolist()) if value} == {7: -1.0, 11: -0.75}
    assert not row.any()


def test_tokens_that_a_smaller_vocabulary_lacks_are_passed_over() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=1.0, min_tokens=9)
    found = Warper(sampling, {5, 60}).processed(torch.full((8,), 2.0), History(TOKENS, 4))
    assert found.tolist() == [2.0, 2.0, 2.0, 1.0, 2.0, -math.inf, 2.0, 0.0]


def test_logits_of_16_bits_are_penalised_in_32() -> None:
    row = torch.full((8,), 1.0, dtype=torch.bfloat16)
    found = Warper(Sampling(repetition_penalty=1.001)).processed(row, History([3], 1))
    assert found.dtype is torch.float32 and 0.998 < float(found[3]) < 1


def test_greedy_without_penalties_changes_nothing() -> None:
    row = logits(1)
    assert Warper(Sampling()).processed(row, EMPTY) is row


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -0.1}, "field temperature: expected a finite number from 0 up, got -0.1"),
        ({"temperature": True}, "field temperature: expected a finite number from 0 up, got True"),
        ({"temperature": "1"}, "field temperature: expected a finite number from 0 up, got '1'"),
        ({"top_k": -1}, "field top_k: expected a number of tokens, 0 for all, got -1"),
        ({"top_k": 1.5}, "field top_k: expected a number of tokens, 0 for all, got 1.5"),
        ({"top_p": 0}, "field top_p: expected a number above 0, at most 1, got 0"),
        ({"top_p": 1.1}, "field top_p: expected a number above 0, at most 1, got 1.1"),
        ({"min_p": math.nan}, "field min_p: expected a number from 0 to 1, got nan"),
        ({"repetition_penalty": 0}, "field repetition_penalty: expected a finite number above 0, got 0"),
        ({"presence_penalty": 2.5}, "field presence_penalty: expected a number from -2 to 2, got 2.5"),
        ({"frequency_penalty": math.inf}, "field frequency_penalty: expected a number from -2 to 2, got inf"),
        ({"min_tokens": -1}, "field min_tokens: expected a number of tokens, got -1"),
        ({"seed": 1.0}, "field seed: expected an integer from 0 to 2**63 - 1, got 1.0"),
    ],
)
def test_bad_values_get_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**given)
    assert str(caught.value) == said


def test_what_a_checkpoint_says() -> None:
    """Qwen3's generation config samples; what it leaves open is as transformers has it."""
    assert Sampling.of_checkpoint(None, "here") == Sampling()
    assert Sampling.of_checkpoint(GenerationConfig(temperature=0.5), "here") == Sampling()
    assert Sampling.of_checkpoint(GenerationConfig(do_sample=True), "here") == Sampling(temperature=1.0, top_k=50)
    qwen = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    assert Sampling.of_checkpoint(qwen, "here") == Sampling(temperature=0.6, top_k=20, top_p=0.95)
    penalised = GenerationConfig(repetition_penalty=1.05)
    assert Sampling.of_checkpoint(penalised, "here") == Sampling(repetition_penalty=1.05)
    with pytest.raises(InputError, match=r"^here: field temperature: expected a finite number from 0 up, got -1\.0$"):
        Sampling.of_checkpoint(_config(do_sample=True, temperature=-1.0), "here")


def test_what_a_request_says_overrides_it() -> None:
    checkpoint = Sampling(temperature=0.6, top_k=20)
    assert checkpoint.override() == checkpoint
    assert checkpoint.override(top_k=None, top_p=0.9) == Sampling(temperature=0.6, top_k=20, top_p=0.9)
    assert checkpoint.override(temperature=0).greedy and checkpoint.override(greedy=True).greedy
    assert Sampling().override(temperature=0.5).explain() == "temperature 0.5"
    assert checkpoint.override(greedy=True).explain() == "greedy"
    assert Sampling(repetition_penalty=2.0).override(greedy=True) == Sampling()
    assert checkpoint.override(greedy=True, repetition_penalty=1.1).explain() == "greedy, repetition_penalty 1.1"
    with pytest.raises(InputError, match=r"^field temperature: expected none beside greedy, got 0\.5$"):
        checkpoint.override(greedy=True, temperature=0.5)
    with pytest.raises(InputError, match=r"^field beams: unknown; expected one of temperature, top_k"):
        checkpoint.override(beams=3)


def _config(**fields: Any) -> Any:
    """A generation config with values that transformers would not take."""
    config = GenerationConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return config
