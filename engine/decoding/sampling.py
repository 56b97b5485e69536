"""How tokens are chosen: the options of a request, checked, and what a checkpoint says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

from spmoe.errors import InputError

SEEDS: Final = 2**63
"""Seeds are 0 .. SEEDS - 1."""
PENALTY: Final = 2.0
"""The largest presence and frequency penalty, as in OpenAI's interface."""


def _real(low: float, high: float, *, above: bool = False) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (low < value if above else low <= value) and value <= high

    return holds


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


_CHECKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "temperature": (_real(0, math.inf), "a finite number from 0 up"),
    "top_k": (_whole, "a number of tokens, 0 for all"),
    "top_p": (_real(0, 1, above=True), "a number above 0, at most 1"),
    "min_p": (_real(0, 1), "a number from 0 to 1"),
    "repetition_penalty": (_real(0, math.inf, above=True), "a finite number above 0"),
    "presence_penalty": (_real(-PENALTY, PENALTY), "a number from -2 to 2"),
    "frequency_penalty": (_real(-PENALTY, PENALTY), "a number from -2 to 2"),
    "min_tokens": (_whole, "a number of tokens"),
    "seed": (lambda value: value is None or (_whole(value) and value < SEEDS), "an integer from 0 to 2**63 - 1"),
}
_TRANSFORMERS: Final = {"temperature": 1.0, "top_k": 50}
"""What transformers takes where a generation config samples and says nothing of these."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of one request.  Each one's default changes nothing.

    `temperature` 0 is greedy decoding, which never draws.  Else tokens are drawn from the `top_k` likeliest (0: all),
    of these from the smallest set that together has probability `top_p`, of these from those with at least `min_p`
    times the probability of the likeliest one.  Before all that `repetition_penalty` divides (or, below 0, multiplies)
    the logits of tokens in the prompt or the output so far, and `presence_penalty` and `frequency_penalty`, the latter
    times its occurrences, are taken off those of tokens in the output.  No end of sequence comes before `min_tokens`
    tokens.  With `seed` (None: any) the same numbers are drawn again.

    Raises InputError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (holds, expected) in _CHECKS.items():
            if not holds(value := getattr(self, name)):
                raise InputError(f"field {name}: expected {expected}, got {value!r}")

    @classmethod
    def of_checkpoint(cls, config: Any, source: str) -> Self:
        """What a generation config of transformers says: greedy unless it has `do_sample`.

        Raises InputError, naming `source`, for a value out of range.
        """
        names = ["repetition_penalty"]
        given: dict[str, Any] = {}
        if getattr(config, "do_sample", None):
            names += ["temperature", "top_k", "top_p", "min_p"]
            given |= _TRANSFORMERS
        given |= {name: value for name in names if (value := getattr(config, name, None)) is not None}
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def override(self, *, greedy: bool = False, **given: Any) -> Self:
        """With the options `given`, as far as they are not None; with `greedy` nothing else holds but those.

        Raises InputError for a value out of range, an unknown option, and a temperature beside `greedy`.
        """
        if unknown := given.keys() - _CHECKS.keys():
            raise InputError(f"field {min(unknown)}: unknown; expected one of {', '.join(_CHECKS)}")
        named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if greedy and named.get("temperature"):
            raise InputError(f"field temperature: expected none beside greedy, got {named['temperature']!r}")
        return replace(type(self)() if greedy else self, **named)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether what came before changes what is likely."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)

    def explain(self) -> str:
        """What holds, in words: of greedy decoding nothing that only draws need."""
        drawn = () if self.greedy else ("temperature", "top_k", "top_p", "min_p")
        shown = [*drawn, "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"]
        defaults = {each.name: each.default for each in fields(self)}
        named = [f"{name} {getattr(self, name):g}" for name in shown if getattr(self, name) != defaults[name]]
        return ", ".join([*(["greedy"] if self.greedy else []), *named])
