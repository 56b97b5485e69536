"""Loads of LRU and of Belady's MIN on routing alone, without machine or time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

NEVER = 1 << 60
"""The next use of a key that is not used again: beyond any visit."""
Row = Sequence[Sequence[int]]
"""One token: per layer, expert ids by rank."""
Visit = tuple[int, ...]
"""The distinct keys that one layer needs in one window, in routing order."""


def visits(requests: Iterable[Sequence[Row]], window: int, experts: int) -> list[Visit]:
    """Cuts each request into consecutive windows, the last one short, and walks the layers of each."""
    found = []
    for request in requests:
        for start in range(0, len(request), window):
            for layer, cells in enumerate(zip(*request[start : start + window], strict=True)):
                found.append(tuple(dict.fromkeys(layer * experts + expert for cell in cells for expert in cell)))
    return found


def lru_loads(needs: Sequence[Visit], slots: int, warm: int = 0) -> int:
    """Residents are touched first, then misses are loaded; what the layer needs is never a victim.

    Loads of the first `warm` visits are not counted.
    """
    cache: OrderedDict[int, None] = OrderedDict()  # a dict would walk over all that left before it finds the oldest
    loads = 0
    for number, visit in enumerate(needs):
        if number == warm:
            loads = 0
        for key in [key for key in visit if key in cache]:
            del cache[key]
            cache[key] = None
        for key in visit:
            if key not in cache:
                loads += 1
                if len(cache) == slots:
                    del cache[next(old for old in cache if old not in visit)]
                cache[key] = None
    return loads


def min_loads(needs: Sequence[Visit], slots: int, warm: int = 0) -> int:
    """Belady's MIN with bypass: after each layer the keys with the nearest next use stay.

    Loads of the first `warm` visits are not counted.
    """
    upcoming: dict[int, int] = {}
    next_uses: list[list[int]] = [[]] * len(needs)
    for index in range(len(needs) - 1, -1, -1):
        next_uses[index] = [upcoming.get(key, NEVER) for key in needs[index]]
        upcoming.update(dict.fromkeys(needs[index], index))
    cache: dict[int, int] = {}
    loads = 0
    for number, (visit, uses) in enumerate(zip(needs, next_uses, strict=True)):
        if number == warm:
            loads = 0
        loads += sum(key not in cache for key in visit)
        cache.update(zip(visit, uses, strict=True))
        if len(cache) > slots:
            cache = dict(sorted(cache.items(), key=lambda item: (item[1], item[0]))[:slots])
    return loads


def global_lru(requests: Iterable[Sequence[Row]], layers: int, experts: int, warm: int) -> float:
    """Hit rate in percent of one LRU cache of a quarter of all experts, the first `warm` tokens not counted."""
    needs = visits(requests, 1, experts)
    uncounted = warm * layers
    return 100 * (1 - lru_loads(needs, layers * experts // 4, uncounted) / sum(map(len, needs[uncounted:])))
