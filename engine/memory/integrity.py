"""Whether the weights in memory are those that were loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer


def check_weights(store: HostStore, slots: SlotBuffer, resident: Mapping[int, int]) -> None:
    """Compares the store with what was loaded, and each `resident` expert's slot (by key) with the store.

    Raises RuntimeError, naming the expert.
    """
    for key in range(store.keys):
        store.check(key)
    for key, slot in resident.items():
        if not torch.equal(slots.rows(slot, 1)[0].cpu(), store.blob(key)):
            raise RuntimeError(f"expert {key} in slot {slot} is not what host memory holds")
