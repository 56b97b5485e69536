"""Writes the generated parts of the README and docs.

    python -m benchmarks.pages [NAME ...] [--check]

Without NAME: all that are made from committed results and from the registry.  `engine-run` runs the command that the
README shows and quotes its output; `models` tries every family with routed experts that transformers has.  `--check`
writes nothing, names the pages that are out of date and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from benchmarks.files import ROOT
from benchmarks.pages import demo, engine_run, fidelity, foresight, models, order, policies, prediction
from benchmarks.pages.markers import Block, updated
from spmoe.files import atomic_write

MEASURED: Mapping[str, Callable[[], Iterator[Block]]] = MappingProxyType(
    {
        "demo": demo.blocks,
        "fidelity": fidelity.blocks,
        "foresight": foresight.blocks,
        "order": order.blocks,
        "policies": policies.blocks,
        "prediction": prediction.blocks,
    }
)
"""From committed results and the registry: the same on every machine."""
WRITERS = MappingProxyType({**MEASURED, "engine-run": engine_run.blocks, "models": models.blocks})


def main(argv: list[str] | None = None) -> int:
    """Write or check pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WRITERS)}")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in WRITERS]:
        parser.error(f"no page writer {unknown[0]!r}: there are {', '.join(WRITERS)}")
    texts = updated(block for name in options.names or MEASURED for block in WRITERS[name]())
    stale = [page for page, text in texts.items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date' if options.check else 'written'}")
        if not options.check:
            with atomic_write(page) as stream:
                stream.write(texts[page])
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
