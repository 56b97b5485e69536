"""Keeping transformers quiet, and saying in one line what it has against its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from engine.memory.out_of_memory import is_out_of_memory
from spmoe.errors import InputError


@contextmanager
def refusing(problem: str) -> Iterator[None]:
    """Says in one line what transformers has against its input: it checks in many ways, with an exception for each."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise  # No fault of the input; whoever loads knows which budget to lower.
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{problem}: {why[:200]}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings of transformers: what matters is raised."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
