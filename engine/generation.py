"""What a request puts out, piece by piece and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, Final, NamedTuple, Self

from engine.decoding.detokenizer import TextPieces
from engine.decoding.logprobs import TokenLogprobs
from engine.decoding.stop_strings import StopStrings

STOP: Final = "stop"
"""The request ended with an end of sequence, or a stop string."""
LENGTH: Final = "length"
"""It has put out as many tokens as it may."""


class Piece(NamedTuple):
    """What a round put out: its tokens, and the text that they bring to an end (empty without a tokenizer).

    `finish_reason` is None before the last piece; `prompt_tokens` and `generated_tokens` count all so far; `logprobs`
    has an entry per token where they were asked for.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


class Generation(NamedTuple):
    """What a request put out: its tokens, without the prompt's, and their text (empty without a tokenizer).

    `finish_reason` is "stop" or "length"; the token that completed a stop string is the last one.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Self:
        """All `pieces` of a request together."""
        all_of = list(pieces)
        last = all_of[-1]
        return cls(
            tuple(token for piece in all_of for token in piece.tokens),
            "".join(piece.text for piece in all_of),
            last.finish_reason,
            last.prompt_tokens,
            last.generated_tokens,
            tuple(each for piece in all_of for each in piece.logprobs),
        )


class Output:
    """Makes pieces of the tokens of rounds, and knows when the request is over."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_tokens: int,
        budget: int,
        ends: Set[int],
        stops: Sequence[str] = (),
        min_tokens: int = 0,
    ) -> None:
        """`tokenizer` is None where there is none; at most `budget` tokens come, and the first of `ends` is the last.
        Stop strings do not count before `min_tokens` tokens."""
        self._text = None if tokenizer is None else TextPieces(tokenizer)
        self._prompt_tokens = prompt_tokens
        self._budget = budget
        self._ends = ends
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._done = 0

    def piece(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> Piece:
        """What a round's tokens come to; of those behind a stop string there are none."""
        shown: list[str] = []
        taken = 0
        for token in tokens:
            taken += 1
            self._done += 1
            text = "" if self._text is None else self._text.feed([token])
            shown.append(self._stops.feed(text) if self._done >= self._min_tokens else text)
            if self._stops.found:
                break
        reason = None
        if self._stops.found or tokens[taken - 1] in self._ends:
            reason = STOP
        elif self._done == self._budget:
            reason = LENGTH
        if reason is not None and not self._stops.found:
            shown.append(self._stops.feed("" if self._text is None else self._text.finish()))
            if self._stops.found:
                reason = STOP
            shown.append(self._stops.finish())
        return Piece(
            tuple(tokens[:taken]),
            "".join(shown),
            reason,
            self._prompt_tokens,
            self._done,
            tuple(logprobs[:taken]),
        )
