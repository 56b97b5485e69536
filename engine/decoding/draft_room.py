"""How many tokens a round may draft, by where in the request it begins."""

from __future__ import annotations

from typing import NamedTuple

from engine.decoding.rope import LengthDependentRope


class DraftRoom(NamedTuple):
    """So many tokens that the target computes what it would token by token, and that the draft has positions for.

    `gamma` at most; `rope` are the target's rotary embeddings, `positions` those that the draft is made for (None: any
    number).
    """

    gamma: int
    rope: LengthDependentRope
    positions: int | None

    def most(self, position: int) -> int:
        """Of a round whose pending token is at `position`."""
        most = self.gamma
        if (alike := self.rope.alike(position)) is not None:
            most = min(most, alike - 1)
        if self.positions is not None:
            most = min(most, max(0, self.positions - position))
        return most
