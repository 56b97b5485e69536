"""`python -m training`: run, evaluate, prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spmoe.cli import json_output, printable, run_command, start
from spmoe.errors import InputError
from spmoe.files import atomic_write
from training.commands import parser
from training.recipe import RECIPES

NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "matplotlib")
"""What comes with `pip install 'spmoe[train]'`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 where the input is bad, 128 + n where signal n ended it."""
    return run_command(parser(), {"run": run, "evaluate": run_evaluate, "prompts": run_prompts}, argv)


def run(options: argparse.Namespace) -> None:
    """Train what is not trained yet, then make figures and card.  OutOfTime ends it, to be gone on with."""
    _need(options.threads)
    from training.corpus import standard_library
    from training.progress import OutOfTime, shown
    from training.stages import Run

    folder, recipe = Path(options.out), RECIPES[options.recipe]
    corpus = standard_library()
    try:
        Run(folder, recipe, corpus).all(shown(options.minutes))
    except OutOfTime:
        print(f"{folder}: out of time; the same command goes on from the last state", file=sys.stderr)
        return
    _describe(folder, corpus)


def run_evaluate(options: argparse.Namespace) -> None:
    """Make the figures again."""
    _need(options.threads)
    from training.corpus import standard_library
    from training.evaluation import evaluate

    with json_output(options.json) as write:
        write(evaluate(Path(options.folder), standard_library()))


def run_prompts(options: argparse.Namespace) -> None:
    """Write prompts from text that the pair in a folder has not learned from."""
    _need(threads=1)
    from training.corpus import standard_library
    from training.prompts import held_out_prompts

    prompts = held_out_prompts(Path(options.folder), standard_library(), options.count, options.length)
    with atomic_write(options.out) as stream:
        stream.writelines(json.dumps(each) + "\n" for each in prompts)
    print(f"{printable(str(options.out))}: {len(prompts)} {'prompt' if len(prompts) == 1 else 'prompts'}")


def _describe(folder: Path, corpus: Any) -> None:
    """Writes figures.json and the model card, README.md."""
    from engine.checkpoints.checkpoint import read_json
    from training.card import card
    from training.evaluation import evaluate
    from training.origin import read_recipe

    figures = evaluate(folder, corpus)
    with atomic_write(folder / "figures.json") as stream:
        stream.write(json.dumps(figures, indent=2) + "\n")
    text = card(read_recipe(folder), read_json(folder / "run.json"), figures)
    with atomic_write(folder / "README.md") as stream:
        stream.write(text)
    print(text)


def _need(threads: int) -> None:
    """Sets the number of threads; InputError where something is not installed."""
    try:
        import matplotlib  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise InputError(f"training needs PyTorch and matplotlib: pip install 'spmoe[train]' ({error})") from None
    torch.set_num_threads(threads)


if __name__ == "__main__":
    start(main)
