"""What happens when an expert is not there as its layer is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from spmoe.policy.parts.io_plan import Pace

LARGE_BATCH: Final = 32
"""From so many tokens on llama.cpp and what builds on it (MoE-SpAc) copy experts instead of using the CPU."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """The missing ones are fetched; residents compute meanwhile, then each as it arrives.

    With `in_order` experts compute by ascending id instead, so that hits wait behind misses.  With `whole_layer` one
    miss fetches all experts of its layer, needed or not.
    """

    in_order: bool = False
    whole_layer: bool = False

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_cpu: ClassVar[bool] = False
    """Whether the CPU computes experts, where there is one."""


@dataclass(frozen=True, slots=True)
class HostCompute:
    """The CPU computes what is missing; in a pass of `LARGE_BATCH` tokens or more (a prompt) it is fetched."""

    needs: ClassVar[frozenset[str]] = frozenset({"cpu"})
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False

    def on_host(self, tokens: int, window: int, pace: Pace) -> bool:
        """Whether the CPU computes a missing expert for `tokens` of the `window` tokens of this pass."""
        return window < LARGE_BATCH


@dataclass(frozen=True, slots=True)
class CheaperOf:
    """The CPU computes a missing expert where that takes less time than fetching it (Fiddler, arXiv 2402.07033)."""

    needs: ClassVar[frozenset[str]] = frozenset({"cpu"})
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False

    def on_host(self, tokens: int, window: int, pace: Pace) -> bool:
        """Whether the CPU is faster for so many tokens; a tie is fetched."""
        return tokens <= pace.host_tokens


@dataclass(frozen=True, slots=True)
class Split:
    """The CPU computes some of a layer's experts, and the GPU those that are there or come over the link, so that both
    finish together.

    Without a CPU all missing ones are fetched.  Which go where is told by `spmoe.policy.parts.cpu_split`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False


MissAction = Fetch | HostCompute | CheaperOf | Split
