"""What happens when an expert is not resident as its layer is reached."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

from spmoe.policy.parts.cpu_split import Late, Needed, split
from spmoe.policy.parts.pace import Pace

LARGE_BATCH: Final = 32
"""From so many tokens on llama.cpp and what builds on it (MoE-SpAc) copy experts instead of using the CPU."""


class Needs(NamedTuple):
    """What a layer needs, and what the policy may know of its loads."""

    time: int
    """Now, in ns."""
    keys: tuple[int, ...]
    """In routing order."""
    tokens: tuple[int, ...]
    """Tokens per expert."""
    window: int
    """Tokens of the pass."""
    cached: Container[int]
    """The keys that count as cached."""
    resident: Container[int]
    arrivals: Iterable[tuple[int, int]]
    """The keys on the link, in order, and when they arrive (ns)."""


class Assigned(NamedTuple):
    """The keys that the CPU computes, and how long it takes (ns from now; 0 where it is not known)."""

    keys: Container[int]
    cpu_ns: int = 0


Assign = Callable[[Needs, Pace], Assigned]


class MissAction(Protocol):
    """The part of a recipe that says where missing experts are computed."""

    needs: ClassVar[frozenset[str]]
    uses_cpu: ClassVar[bool]
    """Whether the CPU computes experts, where there is one."""

    @property
    def in_order(self) -> bool:
        """Whether experts compute by ascending id, so that hits wait behind misses."""

    @property
    def whole_layer(self) -> bool:
        """Whether one miss fetches all experts of its layer, needed or not."""

    def assigner(self, pace: Pace) -> Assign | None:
        """What assigns a layer's experts to the CPU; None where the link brings every missing one."""


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

    def assigner(self, pace: Pace) -> Assign | None:
        """None: the CPU computes nothing."""
        return None


@dataclass(frozen=True, slots=True)
class HostCompute:
    """The CPU computes what is missing; in a pass of `LARGE_BATCH` tokens or more (a prompt) it is fetched."""

    needs: ClassVar[frozenset[str]] = frozenset({"cpu"})
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False

    def assigner(self, pace: Pace) -> Assign | None:
        """All that is not cached, in small passes."""
        return self._assign

    def _assign(self, needs: Needs, pace: Pace) -> Assigned:
        if needs.window >= LARGE_BATCH:
            return Assigned(())
        return Assigned({key for key in needs.keys if key not in needs.cached})


@dataclass(frozen=True, slots=True)
class CheaperOf:
    """The CPU computes a missing expert where that takes less time than fetching it (Fiddler, arXiv 2402.07033)."""

    needs: ClassVar[frozenset[str]] = frozenset({"cpu"})
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False

    def assigner(self, pace: Pace) -> Assign | None:
        """What is not cached and has few enough tokens; a tie is fetched."""
        return self._assign

    def _assign(self, needs: Needs, pace: Pace) -> Assigned:
        few = zip(needs.keys, needs.tokens, strict=True)
        return Assigned({key for key, tokens in few if key not in needs.cached and tokens <= pace.host_tokens})


@dataclass(frozen=True, slots=True)
class Split:
    """The CPU computes some of a layer's experts, and the GPU those that are resident or come over the link, so that
    both finish together (`spmoe.policy.parts.cpu_split`).

    Without a CPU all missing ones are fetched.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_cpu: ClassVar[bool] = True
    in_order: ClassVar[bool] = False
    whole_layer: ClassVar[bool] = False

    def assigner(self, pace: Pace) -> Assign | None:
        """The split that is over first, of hits and misses; None without a CPU."""
        return self._assign if pace.host_ns else None

    def _assign(self, needs: Needs, pace: Pace) -> Assigned:
        now = needs.time
        arrivals, free = {}, now + pace.latency_ns
        for key, arrives in needs.arrivals:
            arrivals[key] = free = max(arrives, now)
        there, absent, late = [], [], []
        for key, tokens in zip(needs.keys, needs.tokens, strict=True):
            host_ns = pace.host_expert_ns(tokens)
            if key in needs.resident:
                there.append(Needed(host_ns, key))
            elif key in arrivals:
                late.append(Late(now - arrivals[key], host_ns, key))
            else:
                absent.append(Needed(host_ns, key))
        shares = split(sorted(there), sorted(absent), sorted(late), free - now, pace)
        return Assigned(shares.host, shares.host_ns)
