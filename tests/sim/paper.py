"""Models, machines and traces small enough to follow with pencil and paper.

A machine is given by the four times that matter.  Its GPU and links are made so fast that every roofline item rounds up
to 1 ns, and the fixed costs bring it to the round number: a layer's attention and router always take `layer_ns`, an
expert `expert_ns` for any number of tokens, a load `latency_ns` before the link is needed and `load_ns` on it.  Where
there is a CPU, it takes `host_ns` for each token of an expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sim.runner import Runner
from spmoe.machine.hardware import Cpu, Draft, Gpu, Hardware, Link
from spmoe.machine.units import GIB
from spmoe.policy.parts.runtime import Runtime
from spmoe.policy.registry import recipe
from spmoe.results.bound import Bound
from spmoe.results.metrics import Metrics
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.state.commands import Command, LayerPlan, Submit
from spmoe.state.events import BatchArrived, Event, LayerDone
from spmoe.trace.schema import (
    ONE,
    Cell,
    DraftShape,
    Forecast,
    ForecastOrigin,
    Header,
    ModelShape,
    RejectedLine,
    Source,
    TokenLine,
    TraceInMemory,
    TraceLine,
)
from spmoe.trace.summary import summarise

EXPERT_BYTES = 6_000_000
BITS = 16


def machine(
    layers: int,
    *,
    layer_ns: int = 100,
    expert_ns: int = 50,
    load_ns: int = 200,
    latency_ns: int = 0,
    copy_ns: int = 0,
    draft_ns: int = 40,
    host_ns: int | None = None,
) -> Hardware:
    """A machine for models of `layers` layers; without `host_ns` nothing is known of its CPU."""
    # A weight takes two bytes and two operations, so an expert has as many operations per token as bytes.
    cpu = Cpu("paper", cores=1, bandwidth=10**18, gflops=EXPERT_BYTES // host_ns) if host_ns else None
    return Hardware(
        name="paper",
        kind="datasheet",
        source="a test",
        link=Link(bandwidth=EXPERT_BYTES * 10**9 // load_ns, latency_ns=latency_ns, copy_ns=copy_ns),
        gpu=Gpu(GIB, bandwidth=10**18, flops=10**18, layer_overhead_ns=layer_ns - 2, expert_overhead_ns=expert_ns - 1),
        draft=Draft(draft_ns, params=100, layers=layers, bits=BITS),
        cpu=cpu,
    )


def milliseconds(layers: int) -> Hardware:
    """A machine whose loads are long: one fills the planner's latency budget of 4 ms, so every batch is one load."""
    ms = 1_000_000
    return machine(layers, layer_ns=ms, expert_ns=ms // 2, load_ns=3 * ms, draft_ns=ms)


def trace(lines: Iterable[TraceLine], layers: int, experts: int, top_k: int = 1) -> TraceInMemory:
    """A trace of a model that nobody has published."""
    kept = tuple(lines)
    header = Header(
        ModelShape("paper-moe", layers, experts, top_k, EXPERT_BYTES * 8 // BITS, dense_params=1, kv_bytes_per_token=1),
        DraftShape("paper-draft", params=100, active_params=100, kv_bytes_per_token=1),
        Source("synthetic", "a test", "", "by hand"),
        tokens=sum(isinstance(line, TokenLine) for line in kept),
        forecasts={"draft": ForecastOrigin("drawn"), "next_gate": ForecastOrigin("drawn")},
    )
    return TraceInMemory(header, kept)


def token(
    position: int,
    *cells: Cell,
    request: int = 0,
    agree: bool = True,
    draft: Sequence[Cell] | None = None,
    next_gate: Sequence[Cell] | None = None,
    rejected: Sequence[Sequence[Cell]] = (),
) -> TokenLine:
    """A token that is routed to one cell per layer; forecasts and rejected inputs are given as cells too."""
    forecasts = {
        name: tuple(map(certain, layers)) for name, layers in (("draft", draft), ("next_gate", next_gate)) if layers
    }
    after = tuple(RejectedLine(tuple(layers)) for layers in rejected)
    return TokenLine(request, position, cells, agree, forecasts=forecasts, rejected=after)


def tokens(*routes: int, request: int = 0) -> list[TokenLine]:
    """Tokens of a model with one layer and top-1 routing."""
    return [token(position, (expert,), request=request) for position, expert in enumerate(routes)]


def certain(cell: Cell) -> Forecast:
    """A forecast that is sure of all its experts."""
    return tuple((expert, ONE) for expert in cell)


Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Solved:
    """A run with all that can be compared with a calculation; keys are (layer, expert), times in ns."""

    metrics: Metrics
    bound: Bound
    entries: tuple[tuple[Event, tuple[Command, ...]], ...]
    experts: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Hits, late, misses, loads."""
        return self.metrics.hits, self.metrics.late, self.metrics.misses, self.metrics.loads

    @property
    def transfers(self) -> list[tuple[list[Key], int, int]]:
        """What crossed the link, from when to when."""
        arrived = {event.batch: event for event, _ in self.entries if isinstance(event, BatchArrived)}
        return [
            ([self._key(load.key) for load in submit.loads], arrived[submit.batch].started, arrived[submit.batch].ended)
            for submit in self.submits
        ]

    @property
    def submits(self) -> list[Submit]:
        return [command for _, commands in self.entries for command in commands if isinstance(command, Submit)]

    @property
    def evicted(self) -> list[Key]:
        """Who left, in order."""
        return [self._key(load.evicted) for one in self.submits for load in one.loads if load.evicted is not None]

    @property
    def plans(self) -> list[LayerPlan]:
        return [command for _, commands in self.entries for command in commands if isinstance(command, LayerPlan)]

    def _key(self, key: int) -> Key:
        return divmod(key, self.experts)


def waits(run: Solved) -> list[tuple[int, int]]:
    """When the GPU had nothing to compute, in order."""
    return [wait for event, _ in run.entries if isinstance(event, LayerDone) for wait in event.waits]


def solve(
    lines: TraceInMemory,
    policy: str,
    slots: int,
    *,
    gamma: int = 0,
    hardware: Hardware | None = None,
    cutoff: int | None = None,
    depth: int | None = None,
    runtime: Runtime | None = None,
) -> Solved:
    """Run one policy; `depth` overrides the number of batches submitted at a time, `runtime` the policy's own."""
    model = lines.header.model
    setting = resolve_setting(
        lines.header,
        summarise(lines).longest_request,
        RunOptions(hardware=hardware or machine(model.layers), bits=BITS, slots=slots, gamma=gamma),
    )
    runner = Runner(lines, setting)
    chosen = recipe(policy)
    if runtime is not None:
        chosen = replace(chosen, runtime=runtime)
    config = setting.configure(chosen, cutoff)[0]
    if depth is not None:
        config = replace(config, depth=depth)
    entries: list[tuple[Event, tuple[Command, ...]]] = []
    metrics = runner.run(chosen, config, [lambda event, commands: entries.append((event, commands))])
    return Solved(metrics, runner.bound(gamma), tuple(entries), model.experts)
