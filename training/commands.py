"""The command line: options, and how they become arguments.  Reading it needs no PyTorch."""

from __future__ import annotations

import argparse
import math

from spmoe.cli import OneLineParser, file
from training.recipe import PICO, RECIPES

THREADS = 1
"""One: sums then come in one order wherever the run goes on, and the other cores stay free."""
PROMPTS = 32
LENGTH = 64


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m training`."""
    top = OneLineParser(prog="python -m training", description="Train the small draft and target.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train a pair, or go on with a run that was interrupted")
    run.add_argument("--out", required=True, metavar="DIR", help="where the run's states and results go")
    run.add_argument("--recipe", choices=RECIPES, default=PICO.name, help=f"default {PICO.name}")
    run.add_argument("--minutes", type=_minutes, metavar="M", help="stop then; the same command goes on")
    evaluate = commands.add_parser("evaluate", help="make the figures of the model card again, as JSON")
    evaluate.add_argument("folder", metavar="DIR")
    evaluate.add_argument("--json", default="-", metavar="FILE", help="default: standard output")
    prompts = commands.add_parser("prompts", help="beginnings of held-out source, for `engine record`")
    prompts.add_argument("folder", metavar="DIR")
    prompts.add_argument("--out", required=True, type=file, metavar="FILE", help="JSON lines, a prompt each")
    prompts.add_argument("--count", type=_count, default=PROMPTS, metavar="N", help=f"default {PROMPTS}")
    prompts.add_argument("--length", type=_count, default=LENGTH, metavar="N", help=f"in tokens; default {LENGTH}")
    for command in (run, evaluate):
        command.add_argument(
            "--threads", type=_count, default=THREADS, metavar="N", help=f"default {THREADS}; weights depend on it"
        )
    return top


def _minutes(text: str) -> float:
    """A time above 0; ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes, above 0, got {text!r}")
    return value


def _count(text: str) -> int:
    """How many of something; ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1024, got {text!r}")
    return int(text)
