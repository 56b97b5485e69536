"""The slot buffer: room for experts on the device, and who still computes with what lies there."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.memory.host_store import require_memory
from engine.memory.layout import Layout
from engine.memory.out_of_memory import oom_as_input_error
from spmoe.machine.units import format_size


class SlotBuffer:
    """One device tensor [slots, layout.size] of bytes; a slot holds the blob of one expert.

    Under CUDA a slot remembers an event behind the last computation that read it, for who overwrites it to wait for.
    On the CPU computations are over when they return, and there is nothing to remember.
    """

    def __init__(
        self, layout: Layout, slots: int, device: torch.device | str = "cpu", available: int | None = None
    ) -> None:
        """`available` is how many bytes of host memory a buffer on the CPU may take; None asks the system.

        Raises InputError when the buffer does not fit the memory of the device.
        """
        self.layout = layout
        self.slots = slots
        self.device = torch.device(device)
        size = slots * layout.size
        if self.device.type == "cpu":
            require_memory(size, available, f"{slots} slots")
        advice = f"{slots} slots take {format_size(size)} of it; lower --vram, --cache or --slots"
        with oom_as_input_error(self.device, advice):
            # Zeros rather than nothing: on the CPU every page is there before the first copy.
            self._bytes = torch.zeros((slots, layout.size), dtype=torch.uint8, device=self.device)
        self._views = tuple(layout.views(blob) for blob in self._bytes)
        self._last_use: dict[int, torch.cuda.Event] = {}

    @property
    def blobs(self) -> torch.Tensor:
        """All bytes, uint8 [rows, layout.size]."""
        return self._bytes

    def row(self, slot: int) -> int:
        """Which of the rows of `blobs` a slot is."""
        return slot

    def views(self, slot: int) -> dict[str, torch.Tensor]:
        """The parameters of the expert in `slot`, by name: always the same views."""
        return self._views[self.row(slot)]

    def rows(self, slot: int, count: int) -> torch.Tensor:
        """The bytes of `count` slots from `slot` on, uint8 [count, layout.size]: a contiguous view."""
        if not 0 <= slot <= self.slots - count:
            raise IndexError(f"slots {slot} to {slot + count - 1} of {self.slots}")
        return self._bytes[slot : slot + count]

    def record_use(self, slots: Iterable[int]) -> None:
        """The work enqueued on the current stream so far reads `slots`: nobody overwrites them before it is done.

        One call after the computation of a layer covers all of its experts.  It has to come before the batch that
        overwrites one of them is submitted.
        """
        if self.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        self._last_use.update(dict.fromkeys(slots, event))

    def last_uses(self, slots: Iterable[int]) -> tuple[torch.cuda.Event, ...]:
        """The distinct events to wait for before `slots` are overwritten."""
        events = (self._last_use.get(slot) for slot in slots)
        return tuple({id(event): event for event in events if event is not None}.values())


class SharedSlots(SlotBuffer):
    """Slots that share the memory of `distinct` ones: what is computed with them is wrong, and takes as long.

    For timing alone, where a model's experts do not all fit a device, or need not.
    """

    def __init__(
        self,
        layout: Layout,
        slots: int,
        distinct: int,
        device: torch.device | str = "cpu",
        available: int | None = None,
    ) -> None:
        """`available` as in `SlotBuffer`, and so are errors."""
        super().__init__(layout, min(slots, distinct), device, available)
        self._distinct = self.slots
        self.slots = slots

    def row(self, slot: int) -> int:
        return slot % self._distinct

    def rows(self, slot: int, count: int) -> torch.Tensor:
        """Contiguous whatever the slot; IndexError for more rows than there are distinct ones."""
        if not 0 <= slot <= self.slots - count or count > self._distinct:
            raise IndexError(f"slots {slot} to {slot + count - 1} of {self.slots}, {self._distinct} of them distinct")
        first = min(slot % self._distinct, self._distinct - count)
        return self._bytes[first : first + count]
