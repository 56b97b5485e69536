"""How long things take when nothing stalls."""

from __future__ import annotations

from typing import NamedTuple


class Pace(NamedTuple):
    """How long things take when nothing stalls: what the policy may reckon with.  Bytes, and integer nanoseconds."""

    load_bytes: int
    latency_ns: int
    """Fixed cost of a submission."""
    transfer_ns: int
    """One expert over the link, without latency."""
    draft_ns: int
    """One drafted token."""
    layer_ns: int
    """One MoE layer of the verifier with a full window, all experts resident."""
    host_tokens: int = 0
    """For so many tokens or fewer the CPU computes an expert in less time than a load takes; 0 where it never does."""
    host_ns: int = 0
    """One expert on the CPU for one token; 0 where it computes none."""
    host_token_ns: int = 0
    """Each token of an expert takes the CPU at least as long."""
    handover_ns: int = 0
    """What handing experts to the CPU takes, before the first."""
    expert_ns: int = 0
    """One expert on the GPU, less what a result of the CPU costs there; 0 where the CPU computes none."""
    least_layer_ns: int = 0
    """As `layer_ns`, with a single token: the least time between two layers' demands."""

    @property
    def load_ns(self) -> int:
        """One expert alone in a submission."""
        return self.latency_ns + self.transfer_ns

    def host_expert_ns(self, tokens: int) -> int:
        """One expert on the CPU for so many tokens."""
        return max(self.host_ns, tokens * self.host_token_ns)
