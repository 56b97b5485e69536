"""Runs the engine as the README shows it, and puts what it says there.

    python -m benchmarks.pages.readme_run

The command is the one between the two markers of README.md.  On one thread; a test compares what does not depend on the
machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from benchmarks.pages.readme_table import README, ROOT
from spmoe.files import atomic_write

BEGIN = "<!-- engine run -->\n```text\n"
END = "```\n<!-- end of engine run -->"
SHOWN = "$ python "


def main() -> None:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    block, after = rest.split(END)
    command = block.splitlines()[0]
    said = subprocess.run(
        [sys.executable, *shlex.split(command.removeprefix(SHOWN))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # in the order in which a terminal shows both
        encoding="utf-8",
        check=True,
    ).stdout
    with atomic_write(README) as stream:
        stream.write(f"{before}{BEGIN}{command}\n{said}{END}{after}")
    print(said, end="")


if __name__ == "__main__":
    main()
