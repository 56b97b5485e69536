"""`python -m engine chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from engine.checkpoints.bundled import ABOUT
from engine.cli.inputs import engine_options, find_models
from engine.cli.messages import encodable, note, telling_failures
from engine.cli.sampling import chat_template_arguments, chosen_sampling, sampling_options
from engine.engine import Engine
from engine.options import Options
from engine.plan import make_plan
from spmoe.cli import printable
from spmoe.errors import InputError

HELP: Final = "/stats: what it took; /clear: a new conversation; /exit or Ctrl-D: leave; Ctrl-C: stop an answer"


def chat(options: argparse.Namespace) -> None:
    """Answers what stands on standard input, line by line, until it ends.

    The models' caches keep what a turn has in common with the one before: only what is new is read.  Raises InputError
    for whatever cannot be run.
    """
    models = find_models(options)
    arguments = chat_template_arguments(options)
    plan = make_plan(*models, Options(**engine_options(options)))
    chosen_sampling(plan, options)
    if plan.tokenizer is None or plan.tokenizer.chat_template is None:
        raise InputError(f"{models.target}: chat: expected a tokenizer with a chat template beside the model")
    with telling_failures(plan), Engine(plan) as engine:
        if options.model is None:
            note(f"no --model, so the bundled pair runs: {ABOUT}")
        for line in filter(None, (plan.fallback, *plan.notes)):
            note(line)
        note(f"{chosen_sampling(plan, options).explain()}; {HELP}")
        conversation = Conversation(engine, options, arguments)
        for said in _lines():
            if said == "/exit":
                break
            conversation.take(said)


class Conversation:
    """The turns so far, and what answers them."""

    def __init__(self, engine: Engine, options: argparse.Namespace, arguments: dict[str, object]) -> None:
        """`arguments` are the chat template's."""
        self._engine = engine
        self._options = options
        self._arguments = arguments
        self._messages: list[dict[str, str]] = []

    def take(self, said: str) -> None:
        """A line of the user's: a command, or something to answer."""
        if said == "/stats":
            print(self._stats(), file=sys.stderr)
        elif said == "/clear":
            self._messages.clear()
        elif said.startswith("/") and " " not in said:
            note(HELP)
        elif said.strip():
            self._answer(said)

    def _answer(self, said: str) -> None:
        turn = [*self._messages, {"role": "user", "content": said}]
        system = self._options.system
        told = [] if system is None else [{"role": "system", "content": system}]
        text = ""
        try:
            pieces = self._engine.stream(
                messages=[*told, *turn],
                max_new_tokens=self._options.max_new_tokens,
                chat_template_args=self._arguments,
                stop=self._options.stop or (),
                keep_context=True,
                **sampling_options(self._options),
            )
        except InputError as error:  # The conversation goes on: it may be too long, or the template wants another turn.
            note(f"not answered: {error}")
            return
        with _interrupts() as interrupted, closing(pieces):  # type: ignore[type-var]
            for piece in pieces:
                text += piece.text
                print(encodable(printable(piece.text, keep="\n\t"), sys.stdout), end="", flush=True)
                if interrupted:
                    break
        print()
        self._messages = [*turn, {"role": "assistant", "content": text}]

    def _stats(self) -> str:
        metrics, transfers = self._engine.metrics(), self._engine.transfers()
        kept, asked = self._engine.kept_tokens()
        parts = [f"{metrics.requests} answers, {metrics.tokens + metrics.prefills} tokens"]
        parts.append(f"{kept} of {asked} prompt tokens kept from the turns before")
        if metrics.needs:
            parts.append(f"experts: {metrics.hits / metrics.needs:.1%} hits")
        if transfers.acceptance is not None:
            parts.append(f"drafts: {transfers.acceptance:.1%} accepted")
        if tpot := metrics.tpot_ms:
            parts.append(f"{1000 / tpot:.1f} tokens/s")
        return "; ".join(parts)


def _lines() -> Iterator[str]:
    """What the user says, line by line, asked for where someone sits at a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """In the block the first Ctrl-C is noted, and ends an answer behind its round; the next one ends the program."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
