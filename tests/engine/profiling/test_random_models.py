"""Models by their configurations: those that come with the project, what does not fit, and memory that is shared."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.checkpoints.bundled import bundled_pair  # noqa: E402
from engine.checkpoints.loader import read_shell  # noqa: E402
from engine.checkpoints.model_pair import describe_draft  # noqa: E402
from engine.memory.host_store import SharedStore  # noqa: E402
from engine.memory.layout import Layout  # noqa: E402
from engine.memory.slot_buffer import SharedSlots  # noqa: E402
from engine.moe.layers import find_moe_layers, read_geometry  # noqa: E402
from engine.profiling.random_models import BlankPair, find_folder, model_names  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from spmoe.machine.geometry import draft_model, draft_names, geometry, geometry_names  # noqa: E402

LAYOUT = Layout.of({"weight": ((8,), torch.float32)})
FIGURES = ("layers", "experts", "top_k", "expert_params", "dense_params", "hidden", "kv_bytes_per_token")


@pytest.mark.parametrize("name", geometry_names())
def test_every_model_that_is_rated_can_be_built(name: str) -> None:
    """And is what it is rated as: parameters counted on the meta device."""
    found = read_geometry(read_shell(find_folder(name), torch.bfloat16), name, "")
    rated = geometry(name)
    assert {each: getattr(found, each) for each in FIGURES} == {each: getattr(rated, each) for each in FIGURES}


@pytest.mark.parametrize("name", [name for name in draft_names() if not name.endswith("eagle3")])
def test_so_can_every_draft(name: str) -> None:
    found = describe_draft(read_shell(find_folder(name), torch.bfloat16), name)
    rated = draft_model(name)
    assert (found.params, found.active_params) == (rated.params, rated.active_params)
    assert found.kv_bytes_per_token == rated.kv_bytes_per_token


def test_heads_that_draft_are_no_models_of_transformers() -> None:
    assert [name for name in draft_names() if name not in model_names()] == ["gpt-oss-20b-eagle3"]


@pytest.mark.parametrize("part", ["target", "draft"])
def test_traces_of_the_deep_pair_can_be_timed_without_its_weights(part: str) -> None:
    assert f"pico-32l-{part}" in model_names()
    shell = read_shell(find_folder(f"pico-32l-{part}"), torch.float32)
    params = sum(each.numel() for each in shell.parameters())
    assert params == (8_409_152 if part == "target" else 1_511_488)


def test_a_folder_will_do(tmp_path: Path) -> None:
    folder = bundled_pair().target
    assert find_folder(str(folder)) == folder == find_folder("pico-target")
    for wrong, complaint in (("magic", "model 'magic' is unknown; expected a folder"), (str(tmp_path), "config.json")):
        with pytest.raises(InputError, match=complaint):
            find_folder(wrong)


def test_a_pair_as_its_configurations_say() -> None:
    pair = BlankPair.read("pico-target", "pico-draft", torch.float32)
    assert (pair.model.name, pair.draft_model.name, pair.layer_map) == ("pico-target", "pico-draft", tuple(range(8)))
    subject = pair.build(torch.device("cpu"), 2**30)
    weights = subject.bench.weights
    assert subject.distinct == 64 and weights.store.keys == 64
    assert all(not layer.expert_parameters() for layer in find_moe_layers(weights.target))
    rest = sum(each.numel() for each in weights.target.parameters())
    assert rest == pair.model.dense_params and rest * 4 == pair.dense_bytes
    again = pair.build(torch.device("cpu"), 2**30)
    for one, other in zip(weights.target.parameters(), again.bench.weights.target.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(weights.store.blob(0), weights.store.blob(63)) and weights.store.blob(0).any()


def test_with_little_memory_experts_share_it() -> None:
    pair = BlankPair.read("pico-target", "pico-draft", torch.float32)
    models = pair.dense_bytes + pair.draft_bytes
    subject = pair.build(torch.device("cpu"), round((models + 3 * 10 * pair.layout.size) / 0.8) + 16)
    assert subject.distinct == 10
    with pytest.raises(InputError, match="expected room for the 8 experts of a layer of pico-target"):
        pair.build(torch.device("cpu"), round((models + 3 * 7 * pair.layout.size) / 0.8))
    with pytest.raises(InputError, match="of host memory, but only"):
        pair.build(torch.device("cpu"), models)


def test_models_of_other_vocabularies_do_not_go_together() -> None:
    with pytest.raises(InputError, match="expected a vocabulary of 1024 tokens, as pico-target has"):
        BlankPair.read("pico-target", "qwen3-0.6b", torch.float32)
    with pytest.raises(InputError, match="no routed experts"):
        BlankPair.read("pico-draft", "pico-draft", torch.float32)


def test_shared_rows_are_contiguous_wherever_they_are() -> None:
    store = SharedStore(LAYOUT, 100, 7)
    slots = SharedSlots(LAYOUT, 50, 7)
    assert (store.keys, slots.slots) == (100, 50)
    for first in range(95):
        assert store.rows(first, 5).shape == (5, LAYOUT.size)
    for first in range(45):
        assert slots.rows(first, 5).is_contiguous()
    assert slots.views(8)["weight"].data_ptr() == slots.views(1)["weight"].data_ptr()
    for rows in (store.rows, slots.rows):
        with pytest.raises(IndexError, match="distinct"):
            rows(0, 8)
    with pytest.raises(IndexError):
        store.rows(96, 5)
    assert SharedStore(LAYOUT, 3, 7).rows(0, 3).shape[0] == 3
