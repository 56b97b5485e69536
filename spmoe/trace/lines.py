"""One decoded JSON line to a prefill or token line, fully validated.

A trace has hundreds of cells per line, so that every check first runs over a whole line inside the interpreter's C
loops (`chain`, `set(map(type, ...))`, `min`, `max`); which cell was wrong is only looked for after one of them failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import trunc
from typing import Any, NoReturn, TypeVar

from spmoe.errors import InputError
from spmoe.trace.header import check_keys
from spmoe.trace.schema import (
    EMPTY,
    ONE,
    Cell,
    Forecast,
    Forecasts,
    Header,
    ModelShape,
    PrefillLine,
    RejectedLine,
    TokenLine,
    TraceLine,
)

_REQUIRED = ("request", "position", "routed", "agree")
_OPTIONAL = ("draft_prob", "weights", "forecasts", "rejected", "gate_probs")
_NUMBERS = {int, float}
_Item = TypeVar("_Item")
_flatten = chain.from_iterable


@dataclass(frozen=True, slots=True)
class LineParser:
    """Turns decoded JSON lines into trace lines; raises InputError naming the field that is wrong."""

    model: ModelShape
    declared: frozenset[str]  # the forecasts that the header speaks of
    wanted: frozenset[str]  # those converted; the others are not looked into

    @staticmethod
    def of(header: Header, wanted: Collection[str] | None = None) -> LineParser:
        """A parser for the lines under `header`; `wanted` limits the forecasts that are converted (None: all)."""
        declared = frozenset(header.forecasts)
        return LineParser(header.model, declared, declared if wanted is None else declared & frozenset(wanted))

    def parse(self, value: object) -> TraceLine:
        """The line that decoded JSON `value` says."""
        if isinstance(value, dict) and "prefill" in value:
            return self._prefill(value)
        line = check_keys(value, _REQUIRED, _OPTIONAL)
        request, position, agree = line["request"], line["position"], line["agree"]
        if type(request) is not int or request < 0:
            raise InputError(f"field request: expected an integer from 0 up, got {request!r}")
        if type(position) is not int or position < 0:
            raise InputError(f"field position: expected an integer from 0 up, got {position!r}")
        if agree is not True and agree is not False:
            raise InputError(f"field agree: expected true or false, got {agree!r}")
        routed = self._cells(line["routed"], "routed", self.model.top_k)
        weights = gates = None
        if "weights" in line:
            weights = self._shares(line["weights"], "weights", list(map(len, routed)))
        if "gate_probs" in line:
            full = self.model.experts
            found = line["gate_probs"]
            sizes = [0 if cell == [] else full for cell in found] if isinstance(found, list) else []
            gates = self._shares(found, "gate_probs", sizes)
        return TokenLine(
            request,
            position,
            routed,
            agree,
            _share(line["draft_prob"], "draft_prob") if "draft_prob" in line else None,
            weights,
            self._forecasts(line["forecasts"], "forecasts") if "forecasts" in line else EMPTY,
            self._rejected(line["rejected"]) if "rejected" in line else (),
            gates,
        )

    def _prefill(self, value: dict[str, Any]) -> PrefillLine:
        line = check_keys(value, ("request", "prefill"))
        prompt = check_keys(line["prefill"], ("tokens", "touched"), ("counts",), "prefill.")
        request, tokens = line["request"], prompt["tokens"]
        if type(request) is not int or request < 0:
            raise InputError(f"field request: expected an integer from 0 up, got {request!r}")
        if type(tokens) is not int or tokens < 1:
            raise InputError(f"field prefill.tokens: expected an integer of at least 1, got {tokens!r}")
        touched = self._cells(prompt["touched"], "prefill.touched", self.model.experts)
        for layer, cell in enumerate(touched):
            if list(cell) != sorted(cell):
                raise InputError(f"field prefill.touched[{layer}]: expected ascending experts, got {list(cell)}")
        counts = self._counts(prompt["counts"], touched, tokens) if "counts" in prompt else None
        return PrefillLine(request, tokens, touched, counts)

    def _counts(self, value: Any, touched: tuple[Cell, ...], tokens: int) -> tuple[tuple[int, ...], ...]:
        """Per layer and expert of `touched`, how many of the prompt's tokens go there: top-k experts for each token."""
        self._check_layers(value, "prefill.counts")
        routed = tokens * self.model.top_k
        for layer, (row, cell) in enumerate(zip(value, touched, strict=True)):
            where = f"field prefill.counts[{layer}]"
            if len(row) != len(cell):
                raise InputError(f"{where}: expected {len(cell)} entries, got {len(row)}")
            for count in row:
                if type(count) is not int or not 1 <= count <= tokens:
                    raise InputError(
                        f"{where}: expected integers from 1 to the prompt's {tokens} tokens, got {count!r}"
                    )
            if row and sum(row) != routed:
                raise InputError(
                    f"{where}: expected a sum of {routed}, {self.model.top_k} experts for each of {tokens} tokens, "
                    f"got {sum(row)}"
                )
        return tuple(map(tuple, value))

    def _rejected(self, value: object) -> tuple[RejectedLine, ...]:
        if not isinstance(value, list):
            raise InputError(f"field rejected: expected a list of lines, got {type(value).__name__}")
        lines = []
        for index, item in enumerate(value):
            where = f"rejected[{index}]."
            line = check_keys(item, ("routed",), ("forecasts", "draft_prob", "weights"), where)
            routed = self._cells(line["routed"], f"{where}routed", self.model.top_k)
            lines.append(
                RejectedLine(
                    routed,
                    self._forecasts(line["forecasts"], f"{where}forecasts") if "forecasts" in line else EMPTY,
                    _share(line["draft_prob"], f"{where}draft_prob") if "draft_prob" in line else None,
                    self._shares(line["weights"], f"{where}weights", list(map(len, routed)))
                    if "weights" in line
                    else None,
                )
            )
        return tuple(lines)

    def _cells(self, value: Any, field: str, most: int) -> tuple[Cell, ...]:
        """Per layer, at most `most` distinct expert ids."""
        self._check_layers(value, field)
        flat = list(_flatten(value))
        if flat and not (set(map(type, flat)) == {int} and min(flat) >= 0 and max(flat) < self.model.experts):
            self._blame_cells(value, field, most)
        cells = tuple(map(tuple, value))
        if sum(map(len, map(set, cells))) != len(flat) or max(map(len, cells)) > most:
            self._blame_cells(value, field, most)
        return cells

    def _shares(self, value: Any, field: str, sizes: list[int]) -> tuple[tuple[int, ...], ...]:
        """Per layer, as many probabilities as `sizes` says."""
        self._check_layers(value, field)
        if list(map(len, value)) != sizes:
            layer = next(layer for layer, size in enumerate(sizes) if len(value[layer]) != size)
            raise InputError(f"field {field}[{layer}]: expected {sizes[layer]} entries, got {len(value[layer])}")
        flat = list(_flatten(value))
        if not _are_shares(flat):
            for layer, row in enumerate(value):
                for share in row:
                    _share(share, f"{field}[{layer}]")
        return _regrouped(_integers(flat), sizes)

    def _forecasts(self, value: object, field: str) -> Forecasts:
        if not isinstance(value, dict):
            raise InputError(f"field {field}: expected a JSON object, got {type(value).__name__}")
        for name in value:
            if name not in self.declared:
                known = ", ".join(sorted(self.declared)) or "none"
                raise InputError(f"field {field}.{name}: expected a forecast that the header has ({known})")
        return {name: self._forecast(value[name], f"{field}.{name}") for name in value if name in self.wanted}

    def _forecast(self, value: Any, field: str) -> tuple[Forecast, ...]:
        """Per layer, [expert, probability] by rank, the experts distinct."""
        self._check_layers(value, field)
        pairs = list(_flatten(value))
        if not pairs:
            return ((),) * len(value)
        try:
            experts, shares = zip(*pairs, strict=True)
        except (TypeError, ValueError):
            self._blame_forecast(value, field)
        if not (
            set(map(type, experts)) == {int}
            and min(experts) >= 0
            and max(experts) < self.model.experts
            and _are_shares(shares)
        ):
            self._blame_forecast(value, field)
        ranked = zip(experts, _integers(shares), strict=True)
        forecasts = _regrouped(ranked, list(map(len, value)))
        if sum(map(len, map(dict, forecasts))) != len(pairs):
            self._blame_forecast(value, field)
        return forecasts

    def _blame_forecast(self, rows: list[list[object]], field: str) -> NoReturn:
        for layer, row in enumerate(rows):
            for pair in row:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise InputError(f"field {field}[{layer}]: expected [expert, probability], got {pair!r}")
                _share(pair[1], f"{field}[{layer}]")
        self._blame_cells([[pair[0] for pair in row] for row in rows], field, self.model.experts)  # type: ignore[index]

    def _check_layers(self, value: object, field: str) -> None:
        layers = self.model.layers
        if type(value) is not list or len(value) != layers:
            got = f"{len(value)}" if isinstance(value, list) else type(value).__name__
            raise InputError(f"field {field}: expected a list of {layers} layers, got {got}")
        if set(map(type, value)) != {list}:
            layer = next(layer for layer, row in enumerate(value) if type(row) is not list)
            raise InputError(f"field {field}[{layer}]: expected a list, got {value[layer]!r}")

    def _blame_cells(self, rows: Iterable[list[Any]], field: str, most: int) -> NoReturn:
        experts = self.model.experts
        for layer, row in enumerate(rows):
            for rank, expert in enumerate(row):
                if type(expert) is not int:
                    raise InputError(f"field {field}[{layer}]: expected an integer expert id, got {expert!r}")
                if not 0 <= expert < experts:
                    raise InputError(f"field {field}[{layer}]: expert {expert} is out of range 0..{experts - 1}")
                if expert in row[:rank]:
                    raise InputError(f"field {field}[{layer}]: expert {expert} is repeated; expected distinct experts")
            if len(row) > most:
                raise InputError(f"field {field}[{layer}]: expected at most {most} experts, got {len(row)}")
        raise AssertionError("called on cells that are fine")


def _are_shares(flat: Collection[Any]) -> bool:
    return not flat or (set(map(type, flat)) <= _NUMBERS and min(flat) >= 0 and max(flat) <= 1)


def _regrouped(flat: Iterator[_Item], sizes: list[int]) -> tuple[tuple[_Item, ...], ...]:
    """`flat` cut into tuples of these sizes."""
    size = sizes[0]
    if size and sizes.count(size) == len(sizes):
        return tuple(zip(*[flat] * size, strict=True))
    return tuple([tuple(islice(flat, size)) for size in sizes])


def _integers(shares: Iterable[float]) -> Iterator[int]:
    return map(trunc, [share * 65536.0 + 0.5 for share in shares])


def _share(value: Any, field: str) -> int:
    if type(value) not in _NUMBERS or not 0 <= value <= 1:
        raise InputError(f"field {field}: expected a probability from 0 to 1, got {value!r}")
    return int(value * ONE + 0.5)
