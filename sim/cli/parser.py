"""The command line: options, and how they become arguments."""

from __future__ import annotations

import argparse
from typing import Literal

from sim.plots.chart import X_AXES
from spmoe.cli import file, program_parser
from spmoe.machine.geometry import geometry_names
from spmoe.machine.hardware import hardware_names
from spmoe.policy.registry import RECIPES
from spmoe.run.options import DEFAULT_HARDWARE
from spmoe.trace.importers import IMPORT_FORMATS


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m sim`."""
    top = program_parser("sim", "Replay expert routing traces on a simulated machine.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    policies = commands.add_parser("policies", help="what the policies do, and where they differ from their sources")
    policies.add_argument("policy", nargs="*", metavar="NAME", help='names or patterns ("spmoe.*"); default: all')
    policies.add_argument("--long", action="store_true", help="all parts too, as with a name or pattern")

    replay = commands.add_parser("replay", help="what each policy costs on a trace")
    _add_trace(replay)
    replay.add_argument(
        "--policy", nargs="+", default=["all"], metavar="NAME", help=f"all (that apply), or: {', '.join(RECIPES)}"
    )
    _add_setting(replay)
    replay.add_argument(
        "--cutoff",
        type=cutoff,
        metavar="N|best",
        help="leading layers that policies with a cutoff layer prefetch for (default: analytical)",
    )
    _add_lossy(replay)
    replay.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    replay.add_argument("--json", metavar="FILE", help="write the results as JSON; - for standard output")
    replay.add_argument("--log", metavar="FILE", type=file, help="write the decision log (of a single policy)")
    replay.add_argument("--timeline", metavar="FILE", type=file, help="write a Chrome trace; ui.perfetto.dev opens it")

    cut = commands.add_parser("cutoff", help="why the cutoff layer is where it is, and where the best one would be")
    _add_trace(cut)
    cut.add_argument("--policy", default="spmoe.paper", metavar="NAME", help="default: spmoe.paper")
    _add_setting(cut)
    cut.add_argument("--json", metavar="FILE", help="write both cutoffs and the sweep as JSON; - for standard output")

    foresee = commands.add_parser("forecasts", help="how good the forecasts of a trace are, and how early they come")
    _add_trace(foresee)
    _add_setting(foresee)
    # Left out unless given, for a log has its own.
    foresee.set_defaults(hardware=None, bits=None, gamma=None, cpu_experts=None)
    foresee.add_argument(
        "--log",
        metavar="FILE",
        type=file,
        help="take lead times from the decision log of a run of the trace's model (its machine, cache and gamma too)",
    )
    foresee.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")

    _add_sweep(commands.add_parser("sweep", help="replays over a grid, on all cores: a table with one row per cell"))
    _add_plot(commands.add_parser("plot", help="draw what a sweep found: TPOT against cache share, gamma or cutoff"))

    _add_fidelity(commands.add_parser("fidelity", help="the simulator's times against those that the engine measured"))

    cost = commands.add_parser("cost", help="where the times come from: the cost model, item by item")
    _add_trace(cost, "; its model, draft and longest request count")
    _add_setting(cost)

    check = commands.add_parser("check", help="read a trace strictly and say what it holds")
    _add_trace(check)

    bring = commands.add_parser("import", help="make a trace from what vLLM or llama.cpp recorded")
    bring.add_argument("source", metavar="SOURCE")
    bring.add_argument("--format", required=True, choices=IMPORT_FORMATS)
    bring.add_argument("--model", required=True, metavar="NAME", help=", ".join(geometry_names()))
    bring.add_argument(
        "--agreement", required=True, type=float, metavar="P", help="P(draft proposes the target's token)"
    )
    bring.add_argument("--draft-accuracy", required=True, type=float, metavar="P", help="P(a draft forecast is right)")
    bring.add_argument("--next-gate-accuracy", type=float, metavar="P", help="likewise next-gate (default: none drawn)")
    bring.add_argument("--confidence-auc", type=float, default=0.9, metavar="A", help="default 0.9")
    bring.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    bring.add_argument("--out", required=True, metavar="FILE")
    return top


def _add_trace(command: argparse.ArgumentParser, why: str = "") -> None:
    command.add_argument(
        "trace",
        nargs="?",
        metavar="TRACE",
        help=f"a trace file (.jsonl, also .gz or .zst; default: the bundled one){why}",
    )


def _add_setting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hardware", default=DEFAULT_HARDWARE, metavar="NAME|FILE", help=f"{', '.join(hardware_names())}, or a profile"
    )
    command.add_argument("--bits", default="4.25", metavar="BITS", help="64, 32, 16, 8 or 4.25 (default) per weight")
    room = command.add_mutually_exclusive_group()
    room.add_argument("--vram", metavar="SIZE", help="GPU memory, such as 18GiB (default: the machine's)")
    room.add_argument("--cache", type=float, metavar="FRACTION", help="share of all experts that has slots")
    room.add_argument("--slots", type=int, metavar="N", help="expert slots, all layers together")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--gamma", type=int, metavar="N", help="drafted tokens per step (default 4)")
    length.add_argument(
        "--gamma-max",
        type=int,
        metavar="N",
        help="without --gamma, the most that policies draft which choose the length themselves (default 16)",
    )
    command.add_argument(
        "--as-model", metavar="NAME", help="take sizes and times from this model, of as many layers and experts"
    )
    _add_cpu_experts(command)


def _add_fidelity(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", nargs="+", metavar="RUN", help="run files of python -m engine measure")
    command.add_argument(
        "--trace", metavar="FILE", type=file, help="what was run (default: by its name, beside RUN or in traces)"
    )
    command.add_argument("--json", metavar="FILE", help="write the comparison as JSON; - for standard output")
    command.add_argument(
        "--timeline", metavar="FILE", type=file, help="a Chrome trace of one run, predicted and measured; needs --logs"
    )
    command.add_argument("--logs", metavar="FOLDER", help="the decision logs of the run, as measure --logs wrote them")


def _add_sweep(command: argparse.ArgumentParser) -> None:
    command.add_argument("trace", nargs="+", metavar="TRACE", help="trace files (.jsonl, also .gz or .zst)")
    command.add_argument(
        "--policy", nargs="+", default=["all"], metavar="NAME", help=f"all (default), or: {', '.join(RECIPES)}"
    )
    command.add_argument(
        "--hardware",
        nargs="+",
        default=[DEFAULT_HARDWARE],
        metavar="NAME|FILE",
        help=f"{', '.join(hardware_names())}, or a profile",
    )
    command.add_argument("--bits", nargs="+", default=["4.25"], metavar="BITS", help="64, 32, 16, 8 or 4.25 (default)")
    room = command.add_mutually_exclusive_group()
    room.add_argument("--vram", nargs="+", metavar="SIZE", help="GPU memory, such as 18GiB (default: the machine's)")
    room.add_argument("--cache", nargs="+", type=float, metavar="FRACTION", help="shares of all experts with slots")
    room.add_argument("--slots", nargs="+", type=int, metavar="N", help="expert slots, all layers together")
    command.add_argument(
        "--gamma", nargs="+", type=int, default=[4], metavar="N", help="drafted tokens per step (default 4)"
    )
    command.add_argument(
        "--cutoff",
        nargs="+",
        type=cutoffs,
        metavar="N|best|all",
        help="leading layers that policies with a cutoff layer prefetch for; all: every number (default: analytical)",
    )
    _add_cpu_experts(command)
    _add_lossy(command)
    command.add_argument(
        "--out", required=True, type=file, metavar="FILE", help=".csv or .parquet; cells it has are not run again"
    )
    command.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    command.add_argument("--dry-run", action="store_true", help="say how many cells there are, and run none")


def _add_cpu_experts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-cpu-experts", dest="cpu_experts", action="store_false", help="keep the CPU from computing experts"
    )


def _add_lossy(command: argparse.ArgumentParser) -> None:
    command.add_argument("--lossy", action="store_true", help="allow policies that change the model's output")


def _add_plot(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", metavar="RESULTS", help="what a sweep wrote (.csv or .parquet)")
    command.add_argument("--x", required=True, choices=X_AXES, help="what to draw against")
    command.add_argument("--y", default="tpot_ms", metavar="COLUMN", help="what to draw (default tpot_ms)")
    command.add_argument("--policy", nargs="+", metavar="NAME", help="draw these only, in this order")
    command.add_argument(
        "--out", type=file, metavar="FILE", help=".png or .svg (default: RESULTS-X.png beside the results)"
    )


def cutoff(text: str) -> int | Literal["best"]:
    """A number of layers, or "best"; ArgumentTypeError for anything else."""
    if text == "best":
        return "best"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of layers, or best, got {text!r}") from None


def cutoffs(text: str) -> int | Literal["best", "all"]:
    """A number of layers, "best", or "all" of them; ArgumentTypeError for anything else."""
    try:
        return "all" if text == "all" else cutoff(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected a number of layers, best or all, got {text!r}") from None
