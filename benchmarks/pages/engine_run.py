"""The README's run of the engine, made by running the command that it shows, on one thread of this machine's CPU."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.files import ROOT
from benchmarks.pages.markers import Block

README = ROOT / "README.md"
NAME = "engine run"
SHOWN = "$ python "


def blocks() -> Iterator[Block]:
    """The command and its output."""
    _, _, rest = README.read_text(encoding="utf-8").partition(f"<!-- {NAME} -->\n```text\n")
    command = rest.partition("\n")[0]
    output = subprocess.run(
        [sys.executable, *shlex.split(command.removeprefix(SHOWN))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # in the order in which a terminal shows both
        encoding="utf-8",
        check=True,
    ).stdout
    yield Block(README, NAME, ["```text", command, *output.splitlines(), "```"])
