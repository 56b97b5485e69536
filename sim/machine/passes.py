"""What the effects of a step take and bring when a trace stands in for the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spmoe.drive.draft_position import Unread
from spmoe.drive.step import Routed
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.gating import thinned
from spmoe.policy.recipe import RouterSignals
from spmoe.state.events import Forecast
from spmoe.trace.gates import even_gate, gate_of
from spmoe.trace.schema import PrefillLine, TokenLine
from spmoe.trace.windows import Round, Routing

NO_FORECAST: Final[Forecast] = ()
NO_SIGNALS: Final = RouterSignals()


class Pass:
    """Stands in for the models during one program."""

    def __init__(self, cost: CostModel, policy: str, signals: RouterSignals = NO_SIGNALS) -> None:
        """`policy` is the name of the recipe that decides, `signals` what it learns from routers besides routing."""
        self._cost = cost
        self._signals = signals
        self._decision_ns = cost.decision_ns(policy)
        self._routing_alone = not (signals.next_gate or signals.gates)
        self._layer_ns = 0
        self._entry_ns = cost.entry_ns()
        self._round_ns = 0
        self._routing: list[Routing] = []
        self._at = 0
        self._experts_ns: dict[int, int] = {}

    def tokens_of(self, experts: Sequence[int]) -> tuple[int, ...]:
        """How many tokens go to each of some experts of the layer reached last."""
        routing = self._routing[self._at]
        return tuple(routing.tokens[routing.experts.index(expert)] for expert in experts)

    def experts_ns(self, experts: Sequence[int]) -> int:
        """How long some experts of the layer reached last compute, one after the other."""
        return sum(map(self._experts_ns.__getitem__, experts))

    def attention(self, layer: int) -> tuple[int, Routed]:
        """Duration (ns) of attention and router of a layer, and what that routes."""
        return self._attention_ns(layer), self._route(layer)

    def accept(self) -> tuple[int, int]:
        """Duration (ns) of choosing what the pass puts out, and how many drafted tokens stand."""
        return self._round_ns, 0

    def _attention_ns(self, layer: int) -> int:
        return self._layer_ns if layer else self._layer_ns + self._entry_ns

    def _reading_ns(self, tokens: int, context: int) -> int:
        """How long a layer takes up to its routing, reading that back and deciding included."""
        signals = self._signals
        readback = self._cost.gate_readback_ns(tokens, signals.next_gate, signals.gates)
        return self._cost.layer_ns(tokens, context) + self._decision_ns + readback

    def _route(self, layer: int) -> Routed:
        routing = self._routing[layer]
        self._at = layer
        self._experts_ns = dict(zip(routing.experts, self._cost.expert_times(routing.tokens), strict=True))
        return Routed(*routing)


class PromptPass(Pass):
    """Reading a prompt.

    Its line has the experts that are touched; where it lacks by how many tokens, these are spread evenly.
    """

    def __init__(self, cost: CostModel, line: PrefillLine, policy: str, signals: RouterSignals = NO_SIGNALS) -> None:
        super().__init__(cost, policy, signals)
        self._layer_ns = self._reading_ns(line.prompt_tokens, line.prompt_tokens)
        self._round_ns = cost.round_ns(1)
        if line.counts is None:
            routed = line.prompt_tokens * cost.geometry.top_k
            counts = tuple((-(-routed // len(cell)),) * len(cell) if cell else () for cell in line.touched)
        else:
            counts = line.counts
        self._routing = list(map(Routing, line.touched, counts))

    def _route(self, layer: int) -> Routed:
        routed = super()._route(layer)
        if self._signals.gates and routed.experts:
            # No line has them for a prompt: all experts touched are equal.
            return routed._replace(gates=(even_gate(routed.experts),))
        return routed


class StepPass(Pass):
    """One round over the token lines at hand: drafting, then verifying as many as were drafted."""

    def __init__(
        self,
        cost: CostModel,
        lines: Sequence[TokenLine],
        gamma: int,
        position: int,
        unread: Unread,
        policy: str,
        signals: RouterSignals = NO_SIGNALS,
        known: int = 0,
    ) -> None:
        """`lines` are up to `gamma` + 1 from the pending token on, fewer where the request ends with them, and behind
        them as many as the draft may go past the longest window; `unread` follows the request's draft, which has read
        the first `known` tokens already."""
        super().__init__(cost, policy, signals)
        self._position = position
        self._unread = unread
        unread.round_begun(position, known)
        self._read: int | None = None
        """What the draft reads for the token under way."""
        self._round = Round(lines, gamma)
        self._seen = known
        """Tokens that the draft has read, from the window's first one on."""

    @property
    def reach(self) -> int:
        """The most tokens that the draft may read."""
        return len(self._round.lines)

    @property
    def stands(self) -> int:
        """How many of the next window's tokens the draft has read already."""
        return max(0, self._seen - self._drafted - 1) if self._round.right > self._drafted else 0

    @property
    def limit(self) -> int:
        """The most tokens that may be drafted."""
        return len(self._round.whole.inputs) - 1

    @property
    def tokens(self) -> int:
        """Tokens that the round puts out."""
        return min(self._round.whole.accepted, self._drafted) + 1

    @property
    def _drafted(self) -> int:
        """How many drafted tokens the window holds."""
        settled = self._round.drafted
        return min(self._seen, self.limit) if settled is None else settled

    def attention(self, layer: int) -> tuple[int, Routed]:
        if layer == 0:
            self._round.drafted = self._drafted
            self._begin_verification()
        return self._attention_ns(layer), self._route(layer) if self._routing_alone else self._route_with_signals(layer)

    def draft_layers(self, token: int, first: int, end: int) -> tuple[int, tuple[Forecast, ...]]:
        """Duration (ns) of the draft's layers `first` to `end` (exclusive) on a token, and their forecasts."""
        forecasts = self._draft_forecasts(token)[first:end]
        return self._draft_ns(first, end) + self._cost.forecast_ns(end - first), forecasts

    def draft_token(self, token: int, first_layer: int) -> tuple[int, int | None]:
        """Duration (ns) of the draft from `first_layer` on, and the probability (/65536) of its token, if known."""
        duration = self._draft_ns(first_layer, self._cost.geometry.layers)
        self._seen = token + 1
        self._read = None
        return duration, self._round.read(token).draft_prob

    def shorten(self, drafted: int) -> None:
        """The window holds the first `drafted` of the tokens drafted."""
        self._round.drafted = drafted

    def accept(self) -> tuple[int, int]:
        self._unread.round_ended(self._position + self.tokens + self.stands)
        return self._cost.round_ns(self._drafted + 1), self.tokens - 1

    def _draft_ns(self, first: int, end: int) -> int:
        if self._read is None:
            self._read = self._unread.draft()
        return self._cost.draft_layers_ns(first, end, self._read)

    def _route_with_signals(self, layer: int) -> Routed:
        routed = self._route(layer)
        signals = self._signals
        if signals.next_gate and layer + 1 < len(self._routing):
            routed = routed._replace(next_gate=self._next_gate(layer + 1))
        if signals.gates:
            inputs = self._round.whole.inputs[: self._drafted + 1]
            routed = routed._replace(gates=tuple(gate_of(line, layer) for line in inputs))
        return routed

    def _next_gate(self, layer: int) -> tuple[Forecast, ...]:
        return tuple([self._forecasts("next_gate", token)[layer] for token in range(self._drafted + 1)])

    def _draft_forecasts(self, token: int) -> tuple[Forecast, ...]:
        forecasts = self._round.read(token).forecasts.get("draft")
        return forecasts if forecasts is not None else (NO_FORECAST,) * self._cost.geometry.layers

    def _begin_verification(self) -> None:
        tokens = self._drafted + 1
        whole = self._round.whole
        self._layer_ns = self._reading_ns(tokens, self._position + tokens)
        inputs = whole.inputs[:tokens]
        if tokens == 1 and self._signals.gate is not None:
            inputs = (thinned(inputs[0], self._signals.gate),)
        self._routing = whole._replace(inputs=inputs).routing()

    def _forecasts(self, name: str, token: int) -> tuple[Forecast, ...]:
        forecasts = self._round.whole.inputs[token].forecasts.get(name)
        return forecasts if forecasts is not None else (NO_FORECAST,) * self._cost.geometry.layers
