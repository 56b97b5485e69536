"""The host store: blobs lie side by side, damage is found, and too little memory is said before it is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.memory.host_store import HostStore, available_memory  # noqa: E402
from engine.memory.layout import Layout  # noqa: E402
from spmoe.errors import InputError  # noqa: E402

LAYOUT = Layout.of({"up": ((3, 5), torch.float32), "down": ((7,), torch.bfloat16)})


def filled(keys: int) -> HostStore:
    store = HostStore(LAYOUT, keys)
    for key in range(keys):
        store.blob(key).fill_(key)
    store.seal()
    return store


def test_blobs_of_neighbouring_keys_are_one_piece_of_memory() -> None:
    store = filled(4)
    assert store.rows(1, 2).is_contiguous()
    assert store.rows(1, 2).tolist() == [[1] * LAYOUT.size, [2] * LAYOUT.size]
    assert store.blob(2).data_ptr() - store.blob(1).data_ptr() == LAYOUT.size


def test_a_parameter_written_through_a_blob_is_read_back() -> None:
    store = filled(3)
    value = torch.arange(15, dtype=torch.float32).reshape(3, 5)
    LAYOUT.views(store.blob(1))["up"].copy_(value)
    assert torch.equal(LAYOUT.views(store.blob(1))["up"], value)
    assert store.blob(0).tolist() == [0] * LAYOUT.size


@pytest.mark.parametrize(("key", "count"), [(-1, 1), (4, 1), (3, 2)])
def test_experts_outside_the_store_are_refused(key: int, count: int) -> None:
    with pytest.raises(IndexError):
        filled(4).rows(key, count)


def test_a_single_flipped_bit_is_found_in_its_blob_only() -> None:
    store = filled(3)
    store.blob(1)[LAYOUT.size - 1] ^= 4
    store.check(0)
    store.check(2)
    with pytest.raises(RuntimeError, match=r"^expert 1 has changed in host memory .*: checksum [0-9a-f]{8}, expected"):
        store.check(1)


def test_what_is_written_before_sealing_again_is_right() -> None:
    store = filled(2)
    store.blob(0).fill_(9)
    store.seal()
    store.check(0)


def test_nothing_is_checked_against_a_store_that_is_not_sealed() -> None:
    with pytest.raises(RuntimeError, match="not sealed"):
        HostStore(LAYOUT, 1).check(0)


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    HostStore(LAYOUT, 8, available=8 * LAYOUT.size)
    monkeypatch.setattr(torch, "empty", lambda *_args, **_kwargs: pytest.fail("memory was taken"))
    with pytest.raises(InputError, match=r"^the 8 experts take 4\.0 KiB of host memory, but only 4\.0 KiB are"):
        HostStore(LAYOUT, 8, available=8 * LAYOUT.size - 1)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_available_memory_is_what_the_system_tells(tmp_path: Path) -> None:
    write(tmp_path, meminfo="MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1000 * 1024


def test_available_memory_ends_at_the_containers_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        meminfo="MemAvailable:   1000 kB\n",
        memory_max="500000\n",
        memory_current="300000\n",
        memory_stat="anon 100000\nactive_file 20000\ninactive_file 100000\n",
    )
    assert available_memory(tmp_path / "meminfo", tmp_path) == 500000 - (300000 - 120000)
    write(tmp_path, memory_max="max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1000 * 1024


def test_available_memory_is_unknown_where_nothing_tells(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "meminfo", tmp_path) is None


class FakeRuntime:
    """Stands for the CUDA runtime: notes what is pinned, or fails."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.pinned[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


def test_exactly_the_blobs_are_pinned_for_as_long_as_the_store_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    store = HostStore(LAYOUT, 5, pin=True)
    assert runtime.pinned == {store.blob(0).data_ptr(): 5 * LAYOUT.size}
    del store
    assert runtime.pinned == {}


def test_memory_that_cannot_be_pinned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: FakeRuntime(error=2))
    with pytest.raises(InputError, match=r"^2\.5 KiB of host memory cannot be pinned: CUDA error 2$"):
        HostStore(LAYOUT, 5, pin=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_store_is_pinned_without_rounding_up() -> None:
    store = HostStore(LAYOUT, 5, pin=True)
    assert store.rows(0, 5).is_pinned()
    del store
