"""The command line: options, and how they become arguments."""

from __future__ import annotations

import argparse

from engine.options import DTYPES, GAMMA
from spmoe.cli import OneLineParser, file
from spmoe.machine.hardware import hardware_names

NEW_TOKENS = 128


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m engine`."""
    top = OneLineParser(
        prog="python -m engine", description="Run Mixture-of-Experts models whose experts live in host memory."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="generate text, and say what it took"))
    verify = commands.add_parser("verify-log", help="repeat the decisions of a log with a fresh scheduler")
    verify.add_argument("log", metavar="FILE")
    verify.add_argument("--earlier", type=file, metavar="TRACE", help="what the run knew, where it was clairvoyant")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--model", metavar="PATH", help="a checkpoint folder (default: a tiny random pair)")
    run.add_argument("--draft", metavar="PATH", help="a draft model's folder (default: no speculation)")
    run.add_argument("--prompt", nargs="+", metavar="TEXT", help="one request each")
    run.add_argument("--chat", action="store_true", help="wrap each prompt in the model's chat template")
    run.add_argument("--max-new-tokens", type=int, default=NEW_TOKENS, metavar="N", help=f"default {NEW_TOKENS}")
    run.add_argument("--ignore-eos", action="store_true", help="go on behind the end of the sequence")
    run.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    run.add_argument("--seed", type=int, metavar="N", help="with a temperature: the same draws again")

    run.add_argument("--policy", default="spmoe.per-layer", metavar="NAME", help="default spmoe.per-layer")
    run.add_argument("--gamma", type=int, metavar="N", help=f"drafted tokens per round (default {GAMMA})")
    run.add_argument("--cutoff", type=int, metavar="N", help="leading layers that spmoe.* prefetches for")
    run.add_argument("--layer-map", type=_numbers, metavar="N,N,...", help="for each MoE layer the draft's layer")
    run.add_argument("--lossy", action="store_true", help="allow policies that change the model's output")
    run.add_argument("--earlier", type=file, metavar="TRACE", help="an earlier run, for policies that learn from one")

    room = run.add_mutually_exclusive_group()
    room.add_argument("--vram", metavar="SIZE", help="memory on the device, such as 18GiB (default: what is free)")
    room.add_argument("--cache", type=float, metavar="FRACTION", help="share of all experts with slots (CPU: 0.5)")
    room.add_argument("--slots", type=int, metavar="N", help="expert slots, all layers together")
    run.add_argument("--context", type=int, metavar="N", help="longest request to keep room for (default: as asked)")
    run.add_argument("--device", metavar="cuda|cpu", help="default: cuda where there is one")
    run.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on the CPU, bfloat16 on a GPU")
    run.add_argument("--link-gbps", type=float, metavar="G", help="on the CPU: slow copies down to G * 10^9 bytes/s")
    run.add_argument(
        "--hardware",
        default="rtx-4090",
        metavar="NAME|FILE",
        help=f"whose figures the policy reckons with: {', '.join(hardware_names())}, or a profile",
    )
    run.add_argument("--virtual-time", metavar="PROFILE", help="real tensors, but the times of that machine's model")

    run.add_argument("--stats", metavar="FILE", help="write the results as JSON; - for standard output")
    run.add_argument("--log", metavar="FILE", type=file, help="write the decision log")
    run.add_argument("--timeline", metavar="FILE", type=file, help="write a Chrome trace; ui.perfetto.dev opens it")
    run.add_argument("--record", metavar="FILE", type=file, help="write the run as a trace (.jsonl, .gz, .zst)")


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers between commas; ArgumentTypeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers between commas, got {text!r}") from None
