"""The experts of a layer as the driver has them computed: on the device from slots, or on the CPU from host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import torch

from engine.execution.cpu_worker import HostWorker
from engine.memory.host_store import HostStore
from engine.memory.slot_buffer import SlotBuffer
from engine.moe.backend import Rows
from engine.moe.eager import expert_output
from engine.moe.layers import MoeLayer


class LayerExperts:
    """Computes experts of one layer, from slots or on the CPU, for one pass after the other."""

    def __init__(self, layer: MoeLayer, store: HostStore, slots: SlotBuffer, host: HostWorker) -> None:
        self._layer = layer
        self._store = store
        self._slots = slots
        self._host = host
        self._rows: Rows
        self._on_cpu: dict[int, Future[torch.Tensor]] = {}

    def set_rows(self, rows: Rows) -> None:
        """A pass has reached the layer with these rows."""
        self._rows = rows

    def compute(self, expert: int, slot: int) -> None:
        """An expert whose weights lie in `slot`; it may only be noted for `launch`."""
        self._rows.compute(expert, slot)

    def launch(self, slots: Iterable[int]) -> None:
        """Enqueues what was noted: from here on these slots are in use until the device is through."""
        self._rows.launch()
        self._slots.record_use(slots)

    def compute_on_cpu(self, experts: Sequence[int]) -> None:
        """Has the CPU compute these, in this order, and returns at once."""
        module, store = self._layer.experts, self._store
        first = self._layer.index * module.num_experts

        def computation(expert: int) -> Callable[[], torch.Tensor]:
            states, ready = _to_host(self._rows.inputs(expert))

            def compute() -> torch.Tensor:
                if ready is not None:
                    ready.synchronize()
                return expert_output(module, states, store.layout.views(store.blob(first + expert)))

            return compute

        for expert in experts:
            self._on_cpu[expert] = self._host.compute(self._layer.index, expert, computation(expert))

    def combined(self) -> torch.Tensor:
        """What all experts add up to [T, hidden]; the CPU's outputs are there, too."""
        for expert, output in self._on_cpu.items():
            self._rows.put(expert, output.result().to(self._slots.device, non_blocking=True))
        total = self._rows.combined()
        del self._rows  # A prompt's are large.
        self._on_cpu.clear()
        return total


def _to_host(states: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and what to wait for before it may be read."""
    if states.device.type == "cpu":
        return states, None
    copy = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    copy.copy_(states, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(states.device))
    return copy, ready
