"""Which token comes next: what the draft proposes, and what the target makes of it.

Greedy decoding takes the likeliest token.  With a temperature, tokens are drawn, and drafted ones are accepted or
replaced by the rule of speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): what
comes out is distributed as if the target alone had drawn it, whatever the draft.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence, Set
from typing import Final, NamedTuple

import torch

from engine.decoding.distribution import Distribution
from engine.decoding.sampling import SEEDS, Sampling
from engine.decoding.warper import EMPTY, History, Warper


class Proposal(NamedTuple):
    """A token that the draft proposes, and the draft's probability of it.

    `distribution` is what it was drawn from; None in greedy decoding, where `probability` is that of the model as it is
    (temperature 1).
    """

    token: int
    probability: float
    distribution: Distribution | None

    @property
    def largest(self) -> float:
        """The largest probability that the draft had for any token there.

        It does not depend on which one was drawn: deciding by it whether to verify the token favours none.
        """
        return self.probability if self.distribution is None else float(self.distribution.weights.max())


class Verdict(NamedTuple):
    """The first `accepted` drafted tokens stand; after them the target puts out `next_token`."""

    accepted: int
    next_token: int


class Sampler:
    """Chooses tokens for one run, batch 1.

    All chance comes from one generator on the CPU, one number in float64 for each decision.  So a seed gives the same
    numbers on every device; logits still differ between devices by rounding.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, ends: Set[int] = frozenset()) -> None:
        """Where `sampling` has no seed, one is chosen; `ends` are the tokens that end a sequence.

        `vocabulary` is the number of ids that the target has logits for.  The draft's may be padded to another size:
        it proposes none of the ids that the target has not, and those that only the target has are never drafted, but
        put out as often as without a draft.
        """
        self.greedy: Final = sampling.greedy
        self.seed: Final = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
        self.vocabulary: Final = vocabulary
        self._warper = Warper(sampling, ends)
        self._generator = torch.Generator().manual_seed(self.seed)

    def propose(self, logits: torch.Tensor, history: History = EMPTY) -> Proposal:
        """The draft's next token behind `history`, from its `logits` [ids]: the likeliest (of equals the lowest id), or
        a draw."""
        logits = logits[: self.vocabulary]
        if self.greedy:
            logits = self._warper.processed(logits, history)
            best = logits.argmax()
            wide = logits.float()
            probability = (wide[best] - wide.logsumexp(0)).exp()
            token, chance = torch.stack((best.double(), probability.double())).tolist()  # one transfer
            return Proposal(int(token), chance, None)
        distribution = self._warper.distribution(logits, history)
        drawn = distribution.draw(self._number())
        return Proposal(drawn, distribution.of(drawn), distribution)

    def verify(
        self,
        drafted: Sequence[int],
        draft_probs: Sequence[Distribution | None],
        target_logits: torch.Tensor,
        history: History = EMPTY,
    ) -> Verdict:
        """How many of the `drafted` tokens stand, and what follows them; with none drafted, just the target's token.

        `draft_probs` are the distributions of their proposals, not looked at in greedy decoding.  Row i of
        `target_logits` [drafted + 1, vocabulary] is the target's view of the place of token i, given those before it:
        `history`, and then the drafted ones.

        Greedy: tokens stand up to the first that the target would not have put out.  Otherwise, with p the target's
        probabilities and q the draft's at a place, token d stands with probability min(1, p(d) / q(d)).  The first that
        does not is replaced by a draw from max(p - q, 0), normalised, which makes up for exactly what the draft
        proposes too seldom; where all stand, one more is drawn from the last row.
        """
        rows = [target_logits[place] for place in range(len(drafted) + 1)]
        befores = [history] * len(rows)
        if self._warper.looks_back:
            befores = [history.then(drafted[:place]) for place in range(len(rows))]
        if self.greedy:
            if self._warper.looks_back:
                target_logits = torch.stack(list(map(self._warper.processed, rows, befores)))
            best: list[int] = target_logits.argmax(-1).tolist()
            accepted = 0
            while accepted < len(drafted) and drafted[accepted] == best[accepted]:
                accepted += 1
            return Verdict(accepted, best[accepted])
        for place, (token, q) in enumerate(zip(drafted, draft_probs, strict=True)):
            assert q is not None
            p = self._warper.distribution(rows[place], befores[place])
            # The number is below 1, so that p(d) >= q(d) always stands, and p(d) = 0 never does.
            if self._number() * q.of(token) >= p.of(token):
                return Verdict(place, p.surplus(q).draw(self._number()))
        last = self._warper.distribution(rows[-1], befores[-1])
        return Verdict(len(drafted), last.draw(self._number()))

    def _number(self) -> float:
        """A random number, at least 0 and below 1."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()
