"""Which missing experts the CPU computes, so that it and the link are through with a layer at the same time.

The link works off what it has, and then what is fetched, one load after the other; the CPU computes one expert after
the other.  Put in order, those that suit the CPU best first, some number of them from the front goes to the CPU, and
what is left comes over the link.  The more go, the later is the CPU and the earlier the link: the number is that with
which the later of the two is earliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Absent(NamedTuple):
    """A missing expert that is not on its way.  Sorts by how well it suits the CPU, the best first: those of few
    tokens.  So fetched are those of many, which are more likely to be needed again."""

    host_ns: int
    expert: int


class Late(NamedTuple):
    """One that is on its way.  Sorts by how well it suits the CPU, the best first: those that the link brings last."""

    minus_arrives_ns: int
    """Minus the time (ns from now) at which it is there."""
    host_ns: int
    expert: int


class Shares(NamedTuple):
    """Who goes to the CPU, and when link and CPU are through (ns from now; 0 with nothing to do)."""

    host: tuple[int, ...]
    link_ns: int
    host_ns: int

    @property
    def over_ns(self) -> int:
        """When both are."""
        return max(self.link_ns, self.host_ns)


def split(absent: Sequence[Absent], late: Sequence[Late], free_ns: int, load_ns: int) -> Shares:
    """The split that is over first, with the fewest experts on the CPU where several are.

    `absent` and `late` are in order; the link is free in `free_ns`, when all that is late is there, and takes `load_ns`
    for each load from then on.  What is late arrives even if the CPU computes it: so it does not make the link earlier
    unless all goes to the CPU that would come after it.
    """
    best = None
    host: list[int] = []
    host_ns = 0
    ends = [free_ns + count * load_ns for count in range(len(absent), 0, -1)]
    ends += [-one.minus_arrives_ns for one in late]
    for one, link_ns in zip((*absent, *late, None), (*ends, 0), strict=True):
        if best is None or max(link_ns, host_ns) < best.over_ns:
            best = Shares(tuple(host), link_ns, host_ns)
        if host_ns >= link_ns or one is None:
            break
        host.append(one.expert)
        host_ns += one.host_ns
    assert best is not None
    return best
