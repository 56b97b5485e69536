"""What is decided, and refused, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.random_pair import PairShape, write_random_pair
from engine.checkpoints.checkpoint import Checkpoint
from engine.checkpoints.model_pair import load_draft
from engine.engine import Engine
from engine.options import CONTEXT, Options
from engine.plan import Plan, make_plan
from spmoe.errors import InputError
from tests.engine.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("no_network")

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


def plan_of(pair: Pair, **options: Any) -> Plan:
    return make_plan(*pair, Options(device="cpu", **options))


def edited(folder: Path, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with another configuration."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    edit(config)
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to


def test_half_of_the_experts_and_four_tokens_unless_asked_otherwise(pair: Pair) -> None:
    plan = plan_of(pair)
    assert (plan.setting.slots, plan.setting.gamma, plan.context) == (16, 4, CONTEXT)
    assert plan.recipe.name == "spmoe.foresight" and plan.fallback == ""
    assert plan.slot_bytes == 16 * 3 * 16 * 64 * 4  # slots x (gate, up, down) x width x hidden x float32
    assert plan_of(pair, cache=1.0).setting.slots == 32
    assert plan_of(pair, slots=7).setting.slots == 7
    assert plan_of(pair, gamma=0).setting.gamma == 0


def test_the_length_is_left_to_policies_that_choose_it(pair: Pair) -> None:
    for asked, chooses, most in (({}, True, 16), ({"gamma_max": 6}, True, 6), ({"gamma": 3}, False, 3)):
        plan = plan_of(pair, policy="spmoe.foresight", **asked)
        assert (plan.config.chooses, plan.config.gamma) == (chooses, most)
    assert plan_of(pair, policy="spmoe.per-layer", gamma_max=6).config.gamma == 4
    with pytest.raises(InputError, match="only one of gamma and gamma_max"):
        plan_of(pair, gamma=3, gamma_max=6)


def test_bytes_of_the_type_count(pair: Pair) -> None:
    assert plan_of(pair, dtype="bfloat16").slot_bytes * 2 == plan_of(pair).slot_bytes
    assert plan_of(pair, dtype="float64").draft_bytes == 2 * plan_of(pair).draft_bytes


def test_more_positions_than_a_model_is_made_for(pair: Pair, tmp_path: Path) -> None:
    """Plain transformers goes on behind them, and says so; the draft's do not count, since it can stop."""
    target, draft = pair
    short = edited(target, tmp_path / "target", lambda config: config.update(max_position_embeddings=100))
    shorter = edited(draft, tmp_path / "draft", lambda config: config.update(max_position_embeddings=60))
    assert plan_of((short, draft)).context == plan_of((short, shorter)).context == 100
    assert plan_of((short, draft), context=100).notes == ()
    (note,) = plan_of((short, shorter), context=101).notes
    assert note.endswith("target: the model is made for 100 positions; what lies behind may make no sense")


def test_stretched_rotary_embeddings_are_made_for_more(pair: Pair, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    changes = {"max_position_embeddings": 40, "head_dim": 8, "rope_parameters": yarn}
    folder = edited(pair[0], tmp_path / "t", lambda config: config.update(changes))
    assert plan_of((folder, pair[1])).context == 128
    assert plan_of((folder, pair[1]), context=128).notes == ()


def test_a_request_that_does_not_fit(pair: Pair) -> None:
    plan = plan_of(pair, context=10)
    plan.check_request([1] * 4, 6)
    for prompt, new, said in (
        ([], 1, "at least one token"),
        ([1, 259], 1, r"0\.\.258, got 259"),
        ([-1], 1, r"0\.\.258, got -1"),
        ([1] * 5, 6, "10 tokens, got 5 of prompt and 6 new"),
    ):
        with pytest.raises(InputError, match=said):
            plan.check_request(prompt, new)


@pytest.mark.parametrize(
    ("shape", "layer_map", "recipe", "why"),
    [
        (PairShape(layers=3), None, "spmoe.foresight.history", "3 layers, the target 4; a layer map would match"),
        (PairShape(layers=3), (0, 0, 1, 2), "spmoe.foresight", ""),
        (PairShape(hidden=32), None, "spmoe.foresight.history", "the draft is 32 wide, the target 64"),
        (PairShape(hidden=32), (0, 1, 2, 3), "spmoe.foresight.history", "the draft is 32 wide, the target 64"),
    ],
)
def test_a_draft_of_another_shape(
    pair: Pair, tmp_path: Path, shape: PairShape, layer_map: tuple[int, ...] | None, recipe: str, why: str
) -> None:
    _, draft = write_random_pair(tmp_path, shape)
    plan = plan_of((pair[0], draft), layer_map=layer_map)
    assert plan.recipe.name == recipe and why in plan.fallback and bool(why) == bool(plan.fallback)
    with pytest.raises(InputError, match="layer map: expected 4 numbers of draft layers"):
        plan_of((pair[0], draft), layer_map=(0, 1, 2, 9))


def test_without_a_draft(pair: Pair) -> None:
    plan = make_plan(pair[0], None, Options(device="cpu"))
    assert plan.setting.gamma == 0 and plan.draft_shape is None and plan.draft_bytes == 0
    assert "there is no draft" in plan.fallback
    for options, said in (
        (Options(gamma=3), "gamma: expected a draft"),
        (Options(gamma_max=3), "gamma_max: expected a draft"),
        (Options(layer_map=(0,)), "layer map"),
    ):
        with pytest.raises(InputError, match=said):
            make_plan(pair[0], None, options)


def test_a_draft_whose_head_is_its_embedding_has_no_tensor_for_it(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tied", "qwen3-moe", tie_word_embeddings=True)
    model = load_draft(folder, torch.float32, torch.device("cpu"))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_vocabularies_of_different_size_without_tokenizers(pair: Pair, tmp_path: Path) -> None:
    for number, folder in enumerate(pair):
        shutil.copytree(folder, tmp_path / str(number), ignore=shutil.ignore_patterns("token*", "special*"))
    ours, theirs = tmp_path / "0", tmp_path / "1"
    assert plan_of((ours, theirs)).tokenizer is None
    other = edited(theirs, tmp_path / "other", lambda config: config.update(vocab_size=300))
    with pytest.raises(InputError, match="other: expected a vocabulary of 259 tokens, as the target's, got 300"):
        plan_of((ours, other))


def test_host_memory_is_checked_before_anything_is_loaded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(pair)
    needed = plan.blueprint.host_bytes + plan.slot_bytes + plan.draft_bytes
    plan_of(pair, host_memory=needed).check_memory()
    short = plan_of(pair, host_memory=needed - 1)

    def refuse(*_: object) -> None:
        pytest.fail("something was loaded")

    monkeypatch.setattr("engine.engine.SlotBuffer", refuse)
    monkeypatch.setattr("engine.engine.load_rest", refuse)
    with pytest.raises(InputError, match=r"the weights of .*random-target, 16 slots and .*random-draft take 1\.3 MiB"):
        Engine(short)


def test_plans_read_no_weights(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(Checkpoint, "slices", refuse)
    assert all(each.device.type == "meta" for each in plan_of(pair).blueprint.shell.parameters())


def test_the_cpu_may_be_kept_from_computing(pair: Pair) -> None:
    assert plan_of(pair, policy="spmoe.foresight.split").config.pace.host_ns > 0
    plan = plan_of(pair, policy="spmoe.foresight.split", cpu_experts=False)
    assert plan.config.pace.host_ns == 0 and not plan.setting.cpu_experts
    with pytest.raises(
        InputError, match=r"fiddler: needs the CPU, and --no-cpu-experts \(cpu_experts=False\) turns it"
    ):
        plan_of(pair, policy="fiddler", cpu_experts=False)
    with pytest.raises(InputError, match="cpu_experts: expected True or False, got 1"):
        plan_of(pair, cpu_experts=1)
