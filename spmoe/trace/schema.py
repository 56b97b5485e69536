"""The trace format `spmoe-trace`, version 1, as types.

A trace is a header and then, per request, an optional prefill line and one line per token *as the verifier's input*.
Probabilities are integers, 65536 meaning 1.0, so that every decision taken from them is exact on every machine.
Layers are the model's mixture-of-experts layers, counted from 0; dense layers have no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, get_args

from spmoe.errors import InputError

FORMAT = "spmoe-trace"
VERSION = 1
MAX_LAYERS, MAX_EXPERTS = 4096, 4096  # far above any model; a larger number is a mistake
ONE = 65536  # the integer that stands for probability 1

ForecastName = Literal["draft", "next_gate"]
FORECAST_NAMES: tuple[str, ...] = get_args(ForecastName)
SourceKind = Literal["recorded", "imported", "synthetic"]
ForecastKind = Literal["recorded", "drawn"]

Cell = tuple[int, ...]  # expert ids of one token and layer, by rank; () where missing
Forecast = tuple[tuple[int, int], ...]  # (expert, probability as integer / 65536) by rank; () where none
Forecasts = Mapping[str, tuple[Forecast, ...]]  # name -> one forecast per layer

EMPTY: Forecasts = MappingProxyType({})


class RejectedLine(NamedTuple):
    """An input that followed a rejected draft token in the same window: it was computed, then rolled back."""

    routed: tuple[Cell, ...]
    forecasts: Forecasts = EMPTY
    draft_prob: int | None = None
    weights: tuple[tuple[int, ...], ...] | None = None


class TokenLine(NamedTuple):
    """One token as the verifier's input."""

    request: int
    position: int
    routed: tuple[Cell, ...]  # per layer, expert ids by rank
    agree: bool  # given the tokens up to this one, the draft proposes the next one as the target would
    draft_prob: int | None = None  # /65536, the draft's probability of the token it proposes next
    weights: tuple[tuple[int, ...], ...] | None = None  # gate weights /65536, the same shape as `routed`
    forecasts: Forecasts = EMPTY  # "draft", "next_gate"
    rejected: tuple[RejectedLine, ...] = ()
    gate_probs: tuple[tuple[int, ...], ...] | None = None  # per layer, /65536 of every expert by id; () where missing


class PrefillLine(NamedTuple):
    """A request's prompt, processed at once before its first token line."""

    request: int
    prompt_tokens: int
    touched: tuple[Cell, ...]  # per layer, the experts that any prompt token was routed to, ascending
    counts: tuple[tuple[int, ...], ...] | None = None  # prompt tokens routed to each of them, the shape of `touched`


TraceLine = PrefillLine | TokenLine


def _check_count(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"field {name}: expected an integer of at least {least}, got {value!r}")


def _check_text(name: str, value: object, *, empty: bool = True) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise InputError(f"field {name}: expected {'' if empty else 'a non-empty '}text, got {value!r}")


def check_rate(name: str, value: object) -> None:
    """Raises InputError unless `value` is a number from 0 to 1 (NaN is not)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"field {name}: expected a number from 0 to 1, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"field {name}: expected one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The target model: what a trace says about it.  Raises InputError on counts that make no sense."""

    name: str
    layers: int  # mixture-of-experts layers
    experts: int  # routed experts per layer
    top_k: int
    expert_params: int  # parameters of one expert
    dense_params: int  # all others: attention, embeddings, routers, shared experts, dense layers
    kv_bytes_per_token: int  # 0 where unknown

    def __post_init__(self) -> None:
        _check_text("model.name", self.name, empty=False)
        for name in ("layers", "experts", "top_k", "expert_params"):
            _check_count(f"model.{name}", getattr(self, name), 1)
        for name in ("dense_params", "kv_bytes_per_token"):
            _check_count(f"model.{name}", getattr(self, name), 0)
        if self.layers > MAX_LAYERS or self.experts > MAX_EXPERTS:
            raise InputError(
                f"field model: expected at most {MAX_LAYERS} layers and {MAX_EXPERTS} experts, got {self.layers} and "
                f"{self.experts}"
            )
        if self.top_k > self.experts:
            raise InputError(f"field model.top_k: expected at most the {self.experts} experts, got {self.top_k}")


@dataclass(frozen=True, slots=True)
class DraftShape:
    """The draft model.  Raises InputError on counts that make no sense."""

    name: str
    params: int  # all weights
    active_params: int  # read per token
    kv_bytes_per_token: int  # 0 where unknown

    def __post_init__(self) -> None:
        _check_text("draft.name", self.name, empty=False)
        for name in ("params", "active_params", "kv_bytes_per_token"):
            _check_count(f"draft.{name}", getattr(self, name), 0)
        if self.active_params > self.params:
            raise InputError(f"field draft.active_params: expected at most {self.params}, got {self.active_params}")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the lines come from, in words.  Raises InputError on an unknown kind or an impossible rate."""

    kind: SourceKind
    what: str
    when: str
    how: str
    agreement: float | None = None  # the rate `agree` was drawn at; None where it was recorded
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_choice("source.kind", self.kind, get_args(SourceKind))
        for name in ("what", "when", "how"):
            _check_text(f"source.{name}", getattr(self, name))
        if self.agreement is not None:
            check_rate("source.agreement", self.agreement)
        if self.seed is not None:
            _check_count("source.seed", self.seed, 0)


@dataclass(frozen=True, slots=True)
class ForecastOrigin:
    """How one named forecast came about.  Raises InputError on an unknown kind or an impossible rate."""

    kind: ForecastKind
    accuracy: float | None = None  # drawn: the rate; recorded: what was measured, or None

    def __post_init__(self) -> None:
        _check_choice("forecasts.kind", self.kind, get_args(ForecastKind))
        if self.accuracy is not None:
            check_rate("forecasts.accuracy", self.accuracy)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a trace.  Raises InputError when a count is impossible or a forecast has no known name."""

    model: ModelShape
    draft: DraftShape | None
    source: Source
    tokens: int  # token lines that follow
    forecasts: Mapping[str, ForecastOrigin] = field(default_factory=dict)  # of every forecast that lines may carry
    empty_cells: int = 0  # (token, layer) cells of the token lines whose routing is missing
    context: int | None = None  # tokens of the longest request that the recorded run was set up for

    def __post_init__(self) -> None:
        _check_count("tokens", self.tokens, 1)
        _check_count("empty_cells", self.empty_cells, 0)
        if self.context is not None:
            _check_count("context", self.context, 1)
        for name in self.forecasts:
            _check_choice("forecasts", name, FORECAST_NAMES)


class Trace(Protocol):
    """What replays read: a header, and lines that can be gone through any number of times."""

    @property
    def header(self) -> Header: ...

    def __iter__(self) -> Iterator[TraceLine]: ...


@dataclass(frozen=True, slots=True)
class TraceInMemory:
    """A trace built in Python; its lines are taken as they are."""

    header: Header
    lines: tuple[TraceLine, ...]

    def __init__(self, header: Header, lines: Iterable[TraceLine]) -> None:
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "lines", tuple(lines))

    def __iter__(self) -> Iterator[TraceLine]:
        return iter(self.lines)
