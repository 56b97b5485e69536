"""What the GPU's memory goes to, and how many expert slots are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from spmoe.errors import InputError
from spmoe.machine.geometry import DraftModel, Geometry
from spmoe.machine.units import GIB, format_size

# Activations, library handles, fragmentation: one round number for all models.
WORKSPACE_BYTES: Final = GIB


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """`vram` bytes and what is taken from them before the experts; all sizes in bytes.

    `target_kv` and `draft_kv` hold the longest request.  `expert` is the size of one slot, `keys` the number of
    experts that exist.
    """

    vram: int
    dense: int
    draft: int
    target_kv: int
    draft_kv: int
    workspace: int
    expert: int
    keys: int

    @property
    def fixed(self) -> int:
        """Everything that is not an expert slot."""
        return self.dense + self.draft + self.target_kv + self.draft_kv + self.workspace

    @property
    def left(self) -> int:
        """What is left for experts; negative when even the rest does not fit."""
        return self.vram - self.fixed

    @property
    def slots(self) -> int:
        """How many experts fit, at most all of them.  Raises InputError when not even one does."""
        if self.left < self.expert:
            raise InputError(
                f"vram {format_size(self.vram)}: expected room for at least one expert of {format_size(self.expert)} "
                f"beside {self._fixed_parts()}: {format_size(self.needs(1))}"
            )
        return self._fitting

    def needs(self, slots: int) -> int:
        """Bytes that a run with this many slots takes in all."""
        return self.fixed + slots * self.expert

    def feasible(self, slots: int, memory_bytes: int) -> bool:
        """Whether a run with this many slots fits a machine with `memory_bytes`."""
        return self.needs(slots) <= memory_bytes

    def warning(self, slots: int, memory_bytes: int) -> str | None:
        """ "hypothetical: needs 42 GiB of 24", or None where it fits."""
        if self.feasible(slots, memory_bytes):
            return None
        return f"hypothetical: needs {_gib(self.needs(slots))} GiB of {_gib(memory_bytes)}"

    def explain(self) -> str:
        """One line: what the memory goes to."""
        return (
            f"{format_size(self.vram)} - {self._fixed_parts()} = {format_size(self.left)} for experts: "
            f"{self._fitting} of {self.keys} slots of {format_size(self.expert)}"
        )

    def explain_needs(self, slots: int) -> str:
        """One line: what a run with this many slots takes, and for what."""
        return (
            f"with {self._fixed_parts()} and {format_size(slots * self.expert)} of experts it takes "
            f"{format_size(self.needs(slots))}"
        )

    @property
    def _fitting(self) -> int:
        return max(0, min(self.keys, self.left // self.expert))

    def _fixed_parts(self) -> str:
        parts = (
            ("dense weights", self.dense),
            ("draft", self.draft),
            ("KV cache", self.target_kv),
            ("draft KV cache", self.draft_kv),
            ("workspace", self.workspace),
        )
        return f"({' + '.join(f'{name} {format_size(size)}' for name, size in parts if size)})"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}".removesuffix(".0")


def memory_budget(
    geometry: Geometry, bits: float, draft: DraftModel | None, longest_request: int, vram: int
) -> MemoryBudget:
    """The budget of a run at `bits` per weight whose longest request has `longest_request` tokens, prompt included.

    The draft's weights are as wide as the target's, or as its published form allows.  Nothing is refused here: asking
    for `slots` is what fails when nothing is left, since a run with a stated number of slots may be hypothetical.
    """
    return MemoryBudget(
        vram=vram,
        dense=geometry.dense_bytes(bits),
        draft=draft.bytes(bits) if draft else 0,
        target_kv=geometry.kv_bytes_per_token * longest_request,
        draft_kv=draft.kv_bytes_per_token * longest_request if draft else 0,
        workspace=WORKSPACE_BYTES,
        expert=geometry.expert_bytes(bits),
        keys=geometry.keys,
    )
