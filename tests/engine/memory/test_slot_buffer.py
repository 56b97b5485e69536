"""The slot buffer: views of its slots, its limits, and which computations an overwrite has to wait for."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.memory.layout import Layout  # noqa: E402
from engine.memory.slot_buffer import SlotBuffer  # noqa: E402
from spmoe.errors import InputError  # noqa: E402

LAYOUT = Layout.of({"up": ((3, 5), torch.float32), "down": ((7,), torch.bfloat16)})


def test_views_are_cached_and_show_what_lies_in_the_slot() -> None:
    slots = SlotBuffer(LAYOUT, 3)
    assert slots.views(1) is slots.views(1)
    slots.rows(1, 1).view(torch.float32)[0, :15] = torch.arange(15, dtype=torch.float32)
    assert slots.views(1)["up"].tolist() == torch.arange(15).reshape(3, 5).tolist()
    assert slots.views(1)["down"].shape == (7,)
    assert not slots.views(0)["up"].any() and not slots.views(2)["up"].any()


@pytest.mark.parametrize(("slot", "count"), [(-1, 1), (3, 1), (2, 2)])
def test_slots_outside_the_buffer_are_refused(slot: int, count: int) -> None:
    with pytest.raises(IndexError):
        SlotBuffer(LAYOUT, 3).rows(slot, count)


def test_too_little_host_memory_is_said() -> None:
    with pytest.raises(InputError, match=r"^3 slots take 1\.5 KiB of host memory, but only 100 B are available$"):
        SlotBuffer(LAYOUT, 3, available=100)


def test_too_little_device_memory_is_said_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(
        InputError, match=r"^out of memory on cuda: 3 slots take 1\.5 KiB of it; lower --vram, --cache or --slots"
    ):
        SlotBuffer(LAYOUT, 3, "cuda")


def test_on_the_cpu_nothing_is_left_to_wait_for() -> None:
    slots = SlotBuffer(LAYOUT, 3)
    slots.record_use([0, 2])
    assert slots.last_uses([0, 1, 2]) == ()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_overwrite_waits_for_the_last_use_of_its_slots() -> None:
    slots = SlotBuffer(LAYOUT, 4, "cuda")
    slots.record_use([0, 1])
    (first,) = slots.last_uses([0, 1, 3])
    slots.record_use([1])
    assert slots.last_uses([0]) == (first,)
    assert first not in slots.last_uses([1])
    assert len(slots.last_uses([0, 1, 2, 3])) == 2
