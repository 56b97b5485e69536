"""Checkpoints by a repository's name, as `hf download` leaves them: found, called by that name, and never fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.checkpoints.checkpoint import model_name
from engine.checkpoints.hub_cache import cache_folder, find_checkpoint, find_folder
from spmoe.errors import InputError

pytestmark = pytest.mark.usefixtures("no_network")

WEIGHTS = "model.safetensors"
COMMIT, OTHER = "0123abc" * 5, "9876fed" * 5


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def add(cache: Path, commit: str = COMMIT, main: bool = True, weights: tuple[str, ...] = (WEIGHTS,)) -> Path:
    """A snapshot of `org/tiny.model-1` whose files are links to blobs, as in a cache."""
    repository = cache / "models--org--tiny.model-1"
    snapshot = repository / "snapshots" / commit
    blobs = repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *weights):
        (blobs / name).write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    if main:
        (repository / "refs" / "main").write_text(commit)
    return snapshot


def index(snapshot: Path, *shards: str) -> None:
    content = {"weight_map": {f"tensor.{number}": shard for number, shard in enumerate(shards)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(content))


def test_a_snapshot_is_called_as_its_repository(cache: Path) -> None:
    snapshot = add(cache)
    assert model_name(snapshot) == "org/tiny.model-1"
    assert model_name(snapshot.parent.parent) == "org/tiny.model-1"
    assert model_name(cache / "pico" / "draft") == "pico-draft"
    assert model_name(cache / "models--gpt2" / "snapshots" / COMMIT) == "gpt2"


def test_ways_to_a_snapshot(cache: Path) -> None:
    snapshot = add(cache)
    for name in ("org/tiny.model-1", cache / "models--org--tiny.model-1", snapshot, str(snapshot)):
        assert find_checkpoint(name) == snapshot


def test_what_main_says_counts(cache: Path) -> None:
    add(cache, OTHER)
    snapshot = add(cache)
    assert find_checkpoint("org/tiny.model-1") == snapshot


def test_the_only_snapshot_needs_no_reference(cache: Path) -> None:
    snapshot = add(cache, main=False)
    assert find_checkpoint("org/tiny.model-1") == snapshot


@pytest.mark.parametrize("name", ["org/tiny.model-1", "CACHE/models--org--tiny.model-1"])
def test_several_snapshots_without_a_reference(cache: Path, name: str) -> None:
    for commit in (COMMIT, OTHER):
        add(cache, commit, main=False)
    with pytest.raises(
        InputError, match=r"^[^\n]*several snapshots and no refs/main [^\n]*: 0123abc0123a, 9876fed9876f$"
    ):
        find_checkpoint(name.replace("CACHE", str(cache)))


def test_a_repository_without_a_snapshot(cache: Path) -> None:
    (cache / "models--org--tiny" / "snapshots").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no snapshot is there; `hf download org/tiny` fetches one$"):
        find_checkpoint("org/tiny")


def test_what_is_not_there_is_not_fetched(cache: Path) -> None:
    with pytest.raises(InputError, match=r"^org/none: no such folder, [^\n]*`hf download org/none` fetches it$"):
        find_checkpoint("org/none")


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "./nowhere", "nowhere/..", "a/b/c", "/no/where", "org/ä b"])
def test_other_names_are_paths(cache: Path, name: str) -> None:
    assert find_checkpoint(name) == Path(name)


def test_a_folder_goes_before_a_repository(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(cache)
    (cache / "org" / "tiny.model-1").mkdir(parents=True)
    monkeypatch.chdir(cache)
    assert find_checkpoint("org/tiny.model-1") == Path("org/tiny.model-1")


def test_incomplete_snapshots(cache: Path) -> None:
    snapshot = add(cache, weights=("a.safetensors",))
    index(snapshot, "a.safetensors", "b.safetensors", "c.safetensors")
    message = r"incomplete: b\.safetensors and 1 more missing; `hf download org/tiny\.model-1` fetches what is missing$"
    for name in ("org/tiny.model-1", snapshot):
        with pytest.raises(InputError, match=message):
            find_checkpoint(name)
    assert find_folder("org/tiny.model-1") == snapshot  # for what needs a configuration only
    index(snapshot, "a.safetensors")
    assert find_checkpoint("org/tiny.model-1") == snapshot
    (snapshot.parent.parent / "blobs" / "a.safetensors").unlink()
    with pytest.raises(InputError, match=r"incomplete: a\.safetensors missing; "):
        find_checkpoint("org/tiny.model-1")


def test_snapshots_without_weights_or_configuration(cache: Path) -> None:
    snapshot = add(cache, weights=())
    with pytest.raises(InputError, match=r"incomplete: model\.safetensors missing; "):
        find_checkpoint(snapshot)
    (snapshot / "pytorch_model.bin").touch()
    assert find_checkpoint(snapshot) == snapshot  # refused as a pickle where it is read
    (snapshot / "config.json").unlink()
    with pytest.raises(InputError, match=r"incomplete: config\.json missing; "):
        find_checkpoint(snapshot)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert cache_folder() == Path("/data/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"
