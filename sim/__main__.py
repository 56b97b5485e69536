"""`python -m sim`, or `spmoe-sim`: policies, replay, cutoff, forecasts, sweep, plot, fidelity, cost, check, import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from sim.cli.commands import COMMANDS
from sim.cli.parser import parser
from spmoe.cli import run_command, start


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 where the input is bad, 128 + n where signal n ended it."""
    return run_command(parser(), COMMANDS, argv)


def run_program() -> NoReturn:
    """The program: exits with what `main` returns, also where a signal ends it."""
    start(main)


if __name__ == "__main__":
    run_program()
