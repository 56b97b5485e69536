"""Which token comes next: what the draft proposes, and what the target makes of it.

Greedy decoding takes the likeliest token.  With a temperature, tokens are drawn, and drafted ones are accepted or
replaced by the rule of speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): what
comes out is distributed as if the target alone had drawn it, whatever the draft.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from spmoe.errors import InputError

SEEDS: Final = 2**63
"""Seeds are 0 .. SEEDS - 1."""


class Proposal(NamedTuple):
    """A token that the draft proposes, and the draft's probability of it.

    `distribution` (float64 [vocabulary], on the CPU) is what it was drawn from; None in greedy decoding, where
    `probability` is that of the model as it is (temperature 1).
    """

    token: int
    probability: float
    distribution: torch.Tensor | None

    @property
    def largest(self) -> float:
        """The largest probability that the draft had for any token there.

        It does not depend on which one was drawn: deciding by it whether to verify the token favours none.
        """
        return self.probability if self.distribution is None else float(self.distribution.max())


class Verdict(NamedTuple):
    """The first `accepted` drafted tokens stand; after them the target puts out `next_token`."""

    accepted: int
    next_token: int


class Sampler:
    """Chooses tokens for one run, batch 1.

    All chance comes from one generator on the CPU, one number in float64 for each decision.  So a seed gives the same
    numbers on every device; logits still differ between devices by rounding.
    """

    def __init__(self, temperature: float, seed: int | None, vocabulary: int) -> None:
        """`temperature` 0 is greedy decoding, which never draws; where `seed` is None, one is chosen.

        `vocabulary` is the number of ids that the target has logits for.  The draft's may be padded to another size:
        it proposes none of the ids that the target has not, and those that only the target has are never drafted, but
        put out as often as without a draft.  Raises InputError for a temperature that is negative or not finite and
        for a seed out of range.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"field temperature: expected a finite number from 0 up, got {temperature!r}")
        if seed is not None and not 0 <= seed < SEEDS:
            raise InputError(f"field seed: expected an integer from 0 to 2**63 - 1, got {seed!r}")
        self.temperature: Final = temperature
        self.seed: Final = secrets.randbelow(SEEDS) if seed is None else seed
        self.vocabulary: Final = vocabulary
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """What tokens are drawn from where `logits` are [..., ids]: float64 [..., ids] on the CPU; not for greedy."""
        wide = logits.to("cpu", torch.float64)
        # The largest becomes 0 first: a tiny temperature must not divide to infinity.
        return ((wide - wide.amax(-1, keepdim=True)) / self.temperature).softmax(-1)

    def propose(self, logits: torch.Tensor) -> Proposal:
        """The draft's next token, from its `logits` [ids]: the likeliest (of equals the lowest id), or a draw."""
        logits = logits[: self.vocabulary]
        if self.greedy:
            best = logits.argmax()
            wide = logits.float()
            probability = (wide[best] - wide.logsumexp(0)).exp()
            token, chance = torch.stack((best.double(), probability.double())).tolist()  # one transfer
            return Proposal(int(token), chance, None)
        distribution = self.distribution(logits)
        drawn = self._draw(distribution)
        return Proposal(drawn, float(distribution[drawn]), distribution)

    def verify(
        self, drafted: Sequence[int], draft_probs: Sequence[torch.Tensor | None], target_logits: torch.Tensor
    ) -> Verdict:
        """How many of the `drafted` tokens stand, and what follows them; with none drafted, just the target's token.

        `draft_probs` are the distributions of their proposals, not looked at in greedy decoding.  Row i of
        `target_logits` [drafted + 1, vocabulary] is the target's view of the place of token i, given those before it.

        Greedy: tokens stand up to the first that the target would not have put out.  Otherwise, with p the target's
        probabilities and q the draft's at a place, token d stands with probability min(1, p(d) / q(d)).  The first that
        does not is replaced by a draw from max(p - q, 0), normalised, which makes up for exactly what the draft
        proposes too seldom; where all stand, one more is drawn from the last row.
        """
        if self.greedy:
            best: list[int] = target_logits.argmax(-1).tolist()
            accepted = 0
            while accepted < len(drafted) and drafted[accepted] == best[accepted]:
                accepted += 1
            return Verdict(accepted, best[accepted])
        target = self.distribution(target_logits)
        for place, (token, q) in enumerate(zip(drafted, draft_probs, strict=True)):
            assert q is not None
            p = target[place]
            # The number is below 1, so that p(d) >= q(d) always stands, and p(d) = 0 never does.
            if self._number() * float(q[token]) >= float(p[token]):
                return Verdict(place, self._draw(surplus(p, q)))
        return Verdict(len(drafted), self._draw(target[len(drafted)]))

    def _number(self) -> float:
        """A random number, at least 0 and below 1."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()

    def _draw(self, weights: torch.Tensor) -> int:
        """An index drawn in proportion to `weights`, float64 [ids], which need not sum to 1."""
        sums = weights.cumsum(0)
        # The first whose sum exceeds a number below the total: one without weight cannot be it.
        return int(torch.searchsorted(sums, self._number() * sums[-1], right=True))


def surplus(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """max(p - q, 0), for `p` [vocabulary] and `q` [ids], which is 0 beyond its end; not normalised.

    `p` itself where that leaves nothing: the two then differ by rounding only.
    """
    rest = p.clone()
    rest[: len(q)] -= q
    rest.clamp_(min=0)
    return rest if rest.any() else p
