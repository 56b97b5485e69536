"""Which experts of a layer the CPU computes, so that it and the GPU are through with the layer at the same time.

The CPU computes one expert after the other.  So does the GPU: those that are there, and then what the link brings,
which works off what it has and after that what is fetched, one load after the other.  Those that are there are put in
order, and so are the missing ones, those that suit the CPU best first; of each some number goes to the CPU, from the
front.  The more go, the later is the CPU and the earlier the GPU: the two numbers are those with which the later of
them is earliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from spmoe.policy.parts.pace import Pace


class Needed(NamedTuple):
    """An expert that is there, or is missing and not on its way.  Sorts by how well it suits the CPU, the best first:
    those of few tokens.  So fetched are those of many, which are more likely to be needed again."""

    host_ns: int
    key: int


class Late(NamedTuple):
    """One that is on its way.  Sorts by how well it suits the CPU, the best first: those that the link brings last."""

    minus_arrives_ns: int
    """Minus the time (ns from now) at which it is there."""
    host_ns: int
    key: int


class Shares(NamedTuple):
    """Which experts the CPU computes, and when GPU and CPU are through (ns from now; 0 with nothing to do)."""

    host: tuple[int, ...]
    gpu_ns: int
    host_ns: int

    @property
    def over_ns(self) -> int:
        """When both are."""
        return max(self.gpu_ns, self.host_ns)


def split(there: Sequence[Needed], absent: Sequence[Needed], late: Sequence[Late], free_ns: int, pace: Pace) -> Shares:
    """The split that is over first, with the fewest experts on the CPU where several are.

    All are in order; the link is free in `free_ns`, when all that is late is there, and takes a transfer's time for
    each load from then on.  What is late arrives even if the CPU computes it: so it does not make the link earlier
    unless all goes to the CPU that would come after it.
    """
    missing: tuple[Needed | Late, ...] = (*absent, *late)
    arrivals = [-one.minus_arrives_ns for one in reversed(late)]
    arrivals += [free_ns + count * pace.transfer_ns for count in range(1, len(absent) + 1)]
    # When the GPU is through with so many of those that arrive first, if it has nothing else to do.
    fetched = list(accumulate(arrivals, lambda end, arrives: max(end, arrives) + pace.expert_ns, initial=0))
    lacking = list(accumulate([one.host_ns for one in missing], initial=0))
    having = list(accumulate([one.host_ns for one in there], initial=0))
    best = Shares((), max(fetched[-1], (len(missing) + len(there)) * pace.expert_ns), 0)
    for taken, lacks_ns in enumerate(lacking):
        left = len(missing) - taken
        for freed in range(not taken, len(having)):
            gpu_ns = max(fetched[left], (left + len(there) - freed) * pace.expert_ns)
            host_ns = pace.handover_ns + lacks_ns + having[freed]
            if (max(gpu_ns, host_ns), taken + freed) < (best.over_ns, len(best.host)):
                host = [one.key for ones in (missing[:taken], there[:freed]) for one in ones]
                best = Shares(tuple(host), gpu_ns, host_ns)
            if host_ns >= gpu_ns or gpu_ns == fetched[left]:
                break  # More of them make the CPU later, and the GPU no earlier, or earlier than it has to be.
        if lacks_ns >= best.over_ns:
            break
    return best
