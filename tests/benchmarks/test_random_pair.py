"""The pair that tests and benchmarks use: it loads, is the same bytes each time, and its models agree now and then."""
# ruff: noqa: E402

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.engine.random_pair import write_random_pair
from engine.checkpoints.tokenizer_files import load_tokenizer
from engine.memory.host_store import HostStore
from tests.engine.loading import load
from tests.engine.tiny import eager_model

pytestmark = pytest.mark.usefixtures("no_network")

PROMPTS = ("Hello, world", "def main():\n", "The quick brown fox", "", "ünïcödé 🙂", "1 2 3 4 5")
NEW = 48


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def models(pair: tuple[Path, Path]) -> tuple[Any, Any]:
    target, draft = pair
    dense = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32, local_files_only=True)
    return eager_model(target, torch.float32), dense.eval()


@pytest.fixture(scope="module")
def texts(pair: tuple[Path, Path], models: tuple[Any, Any]) -> list[tuple[int, Any]]:
    """The prompts' lengths in tokens, and the tokens [1, length + NEW] with what the target adds greedily."""
    tokenizer = load_tokenizer(pair[0])
    prompts = [tokenizer(each, return_tensors="pt").input_ids for each in PROMPTS]
    return [(each.shape[1], models[0].generate(each, max_new_tokens=NEW, do_sample=False)) for each in prompts]


def test_the_same_bytes_every_time(pair: tuple[Path, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = write_random_pair(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(pair, again, strict=True):
        names = {each.name for each in first.iterdir()}
        assert names == {each.name for each in second.iterdir()} and "tokenizer.json" in names
        for name in names:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_writing_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_random_pair(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_it_loads_and_its_names_say_that_it_is_random(pair: tuple[Path, Path]) -> None:
    loaded = load(pair[0], HostStore, dtype=torch.float32)
    geometry = loaded.blueprint.geometry
    assert (geometry.name, geometry.layers, geometry.experts, geometry.top_k) == ("random-target", 4, 8, 2)
    assert pair[1].name == "random-draft"
    assert sum(each.stat().st_size for folder in pair for each in folder.iterdir()) < 1_300_000


def test_positions_mean_the_same_to_both(pair: tuple[Path, Path]) -> None:
    target, draft = (AutoConfig.from_pretrained(each, local_files_only=True) for each in pair)
    assert target.rope_parameters == draft.rope_parameters
    assert target.sliding_window is None and draft.sliding_window is None


def test_the_draft_is_the_target_but_for_the_experts(models: tuple[Any, Any]) -> None:
    target, draft = (each.state_dict() for each in models)
    own = {name for name, each in draft.items() if name not in target or not torch.equal(each, target[name])}
    kinds = ("gate_proj", "up_proj", "down_proj")
    assert own == {f"model.layers.{layer}.mlp.{kind}.weight" for layer in range(4) for kind in kinds}


def test_the_tokenizer_gives_text_back_byte_by_byte(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        tokenizer = load_tokenizer(folder)
        for text in (*PROMPTS, " two  spaces ", "<0x41>", "\x00\n\t\x7f", "日本語"):
            ids = tokenizer(text).input_ids
            assert ids == [tokenizer.bos_token_id, *text.encode()]
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_draft_guesses_some_of_the_tokens_of_the_target(
    models: tuple[Any, Any], texts: list[tuple[int, Any]]
) -> None:
    hits = 0
    for length, tokens in texts:
        assert tokens.shape == (1, length + NEW), "ended early"
        with torch.no_grad():
            guesses = models[1](tokens).logits[0, length - 1 : -1].argmax(-1)
        hits += int((guesses == tokens[0, length:]).sum())
    assert 0.4 < hits / (len(PROMPTS) * NEW) < 0.9  # 0.625; elsewhere rounding may lead to other texts


def test_what_it_writes_can_be_shown(texts: list[tuple[int, Any]]) -> None:
    assert all(0x20 <= token < 0x7F for length, tokens in texts for token in tokens[0, length:].tolist())


def test_the_draft_foretells_experts_and_all_are_used(models: tuple[Any, Any], texts: list[tuple[int, Any]]) -> None:
    target, draft = models
    gates = [layer.mlp.gate for layer in target.model.layers]
    chosen: list[Any] = []
    states: list[Any] = []
    hooks = [gate.register_forward_hook(lambda _module, _args, out: chosen.append(out[2])) for gate in gates]
    hooks += [
        layer.post_attention_layernorm.register_forward_hook(lambda _module, _args, out: states.append(out))
        for layer in draft.model.layers
    ]
    hit = count = 0
    used: set[tuple[int, int]] = set()
    with torch.no_grad():
        for _, tokens in texts:
            chosen.clear()
            states.clear()
            target(tokens)
            draft(tokens)
            actual = list(chosen)
            for layer, (gate, state, experts) in enumerate(zip(gates, states, actual, strict=True)):
                guess = gate(state.flatten(0, -2))[2]
                used |= {(layer, expert) for expert in experts.flatten().tolist()}
                found = (guess[:, :, None] == experts[:, None, :]).any(-1)
                if layer == 0:
                    assert found.all()  # nothing differs before the first MLP
                else:
                    hit, count = hit + int(found.sum()), count + found.numel()
    for hook in hooks:
        hook.remove()
    assert len(used) == 32
    assert 0.6 < hit / count < 1  # 0.834
