"""The document `spmoe-result/1`, which simulator and engine both write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spmoe.results.bound import Bound
from spmoe.results.result import SCHEMA, Result
from spmoe.run.setting import Setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import Trace
from spmoe.trace.summary import TraceSummary

CutoffChoice = Literal["analytical", "best", "given"]


@dataclass(frozen=True, slots=True)
class TraceDescription:
    """What a document says of a trace; None for what is not known of a run that was never a file."""

    name: str | None
    model: str
    source: str
    what: str
    tokens: int
    requests: int
    prefills: int
    agreement: float | None
    empty_cells: int
    rejected_inputs: int | None

    @classmethod
    def of(cls, trace: Trace, summary: TraceSummary) -> TraceDescription:
        """That of `trace`, with the numbers of `summary`."""
        header = trace.header
        return cls(
            name=trace.path.name if isinstance(trace, TraceFile) else None,
            model=header.model.name,
            source=header.source.kind,
            what=header.source.what,
            tokens=summary.tokens,
            requests=summary.requests,
            prefills=summary.prefills,
            agreement=summary.agreement,
            empty_cells=summary.empty_cells,
            rejected_inputs=summary.rejected_inputs,
        )

    @property
    def title(self) -> str:
        """Its file name, or what it is a trace of."""
        return self.name or self.what

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ResultDocument:
    """The results of policies on a trace in one setting.

    `bound` is None where the run's windows are not known.  `cutoffs` holds the cutoff layer of each policy that has
    one, `skipped` why a policy was left out.
    """

    trace: TraceDescription
    setting: Setting
    bound: Bound | None
    results: tuple[Result, ...]
    cutoffs: Mapping[str, int]
    cutoff_choice: CutoffChoice
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The document; the same inputs give the same bytes."""
        bound = self.bound
        return {
            "schema": SCHEMA,
            "trace": self.trace.to_json(),
            "config": {
                **self.setting.to_json(),
                "cutoff": {"choice": self.cutoff_choice, "layers": dict(self.cutoffs)},
                "stand_ins": 0 if bound is None else bound.stand_ins,
                "skipped": dict(self.skipped),
                **self.driver_config(),
            },
            "feasible": self.setting.feasible,
            "bound": None if bound is None else {"loads_per_token": bound.loads_per_token, "tpot_ms": self.bound_ms()},
            "results": [result.to_json() for result in self.results],
        }

    def driver_config(self) -> Mapping[str, Any]:
        """What a driver adds to `config`."""
        return {}

    def bound_ms(self) -> float | None:
        """The bound's TPOT; None where times are not those of the cost model."""
        return None if self.bound is None else self.bound.tpot_ms


def chosen_by(cutoff: int | Literal["best"] | None) -> CutoffChoice:
    """How the cutoff layers of a run came about, where `cutoff` was asked for."""
    return "analytical" if cutoff is None else "best" if cutoff == "best" else "given"
