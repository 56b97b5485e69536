"""The command line: options, and how they become arguments.  Reading it needs no PyTorch."""

from __future__ import annotations

import argparse
import math

from engine.options import DEFAULT_POLICY, DTYPES, KERNELS
from spmoe.cli import file, program_parser
from spmoe.machine.hardware import hardware_names
from spmoe.run.options import DEFAULT_HARDWARE, GAMMA, GAMMA_MAX

NEW_TOKENS = 128
CHAT_TOKENS = 1024
TURNS = 3
REPEATS = 3

_Group = argparse._ArgumentGroup


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m engine`."""
    top = program_parser("engine", "Run Mixture-of-Experts models whose experts live in host memory.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="generate text, and say what it took"))
    _add_chat(commands.add_parser("chat", help="talk to a model in the terminal"))
    _add_record(commands.add_parser("record", help="record a routing trace from many prompts"))
    _add_profile(commands.add_parser("profile", help="measure this machine, for the simulator"))
    _add_measure(commands.add_parser("measure", help="time policies on a trace, whose routing is forced"))
    verify = commands.add_parser("verify-log", help="repeat the decisions of a log with a fresh scheduler")
    verify.add_argument("log", metavar="FILE")
    verify.add_argument("--earlier", type=file, metavar="TRACE", help="what the run knew, where it was clairvoyant")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    _add_models(run)
    run.add_argument("--prompt", nargs="+", metavar="TEXT", help="one request each (bundled pair: a piece of code)")
    text = _add_text(run)
    text.add_argument(
        "--against-plain", action="store_true", help="then generate with plain transformers, too, and compare"
    )

    _add_policy(run)
    out = run.add_argument_group("output")
    out.add_argument("--stats", metavar="FILE", help="write the results as JSON; - for standard output")
    out.add_argument("--log", metavar="FILE", type=file, help="write the decision log")
    out.add_argument("--timeline", metavar="FILE", type=file, help="write a Chrome trace; ui.perfetto.dev opens it")
    out.add_argument("--record", metavar="FILE", type=file, help="write the run as a trace (.jsonl, .gz, .zst)")


def _add_chat(chat: argparse.ArgumentParser) -> None:
    _add_models(chat)
    text = chat.add_argument_group("text")
    text.add_argument("--system", metavar="TEXT", help="what the model is told before")
    text.add_argument(
        "--chat-template-arg", nargs="+", metavar="NAME=VALUE", help="for the chat template: enable_thinking=false"
    )
    text.add_argument("--max-new-tokens", type=_count, default=CHAT_TOKENS, metavar="N", help=f"default {CHAT_TOKENS}")
    text.add_argument("--stop", nargs="+", metavar="TEXT", help="end an answer where one of these comes")
    _add_sampling(chat)
    _add_policy(chat)


def _add_policy(command: argparse.ArgumentParser) -> None:
    """What decides, and on what machine."""
    policy = command.add_argument_group("policy")
    policy.add_argument(
        "--policy",
        default=DEFAULT_POLICY,
        metavar="NAME",
        help=f"default {DEFAULT_POLICY}; python -m sim policies lists them all",
    )
    _add_drafting(policy, chosen=True)
    policy.add_argument("--cutoff", type=int, metavar="N", help="leading layers that spmoe.* prefetches for")
    policy.add_argument("--lossy", action="store_true", help="allow policies that change the model's output")
    policy.add_argument(
        "--earlier", type=file, metavar="TRACE", help="an earlier run, for policies that learn from one"
    )

    machine = _add_machine(command, "CPU: 0.5")
    machine.add_argument("--kernel", choices=KERNELS, default="plain", help="what computes experts (default plain)")
    machine.add_argument("--link-gbps", type=float, metavar="G", help="on the CPU: slow copies to G * 10^9 bytes/s")
    machine.add_argument(
        "--hardware",
        default=DEFAULT_HARDWARE,
        metavar="NAME|FILE",
        help=f"whose figures the policy reckons with: {', '.join(hardware_names())}, or a profile",
    )
    _add_cpu_experts(machine)
    machine.add_argument("--virtual-time", metavar="PROFILE", help="real tensors, the times of that machine's model")


def _add_record(record: argparse.ArgumentParser) -> None:
    record.add_argument(
        "--prompts",
        required=True,
        type=file,
        metavar="FILE",
        help=".txt: one prompt per line; .jsonl: one JSON string, or object with a prompt, per line",
    )
    record.add_argument("--out", required=True, type=file, metavar="FILE", help="the trace (.jsonl, .gz, .zst)")
    _add_models(record)
    _add_text(record)
    _add_drafting(record.add_argument_group("drafting"))
    _add_machine(record, "CPU: 1 where memory allows it")


def _add_profile(profile: argparse.ArgumentParser) -> None:
    profile.add_argument("--out", required=True, type=file, metavar="FILE", help="the profile (profiles/NAME.json)")
    profile.add_argument(
        "--model",
        default="pico-target",
        metavar="NAME|FOLDER",
        help="what to compute with, filled with random weights (default: the small pair's target)",
    )
    _add_blank(profile)
    profile.add_argument("--turns", type=_count, default=TURNS, metavar="N", help=f"more readings (default {TURNS})")


def _add_measure(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("trace", metavar="TRACE", help="a trace file (.jsonl, also .gz or .zst)")
    measure.add_argument("--out", required=True, type=file, metavar="RUN", help="the run file (.json)")
    measure.add_argument(
        "--model", metavar="NAME|FOLDER", help="filled with random weights (default: the model that the trace names)"
    )
    _add_blank(measure)
    measure.add_argument(
        "--policy", nargs="+", default=["all"], metavar="NAME", help='names or patterns (default: "all" that apply)'
    )
    measure.add_argument("--gamma", type=int, default=GAMMA, metavar="N", help=f"drafted tokens per round ({GAMMA})")
    room = measure.add_mutually_exclusive_group()
    room.add_argument("--cache", type=float, metavar="FRACTION", help="share of all experts with slots (default 0.5)")
    room.add_argument("--slots", type=int, metavar="N", help="expert slots, all layers together")
    _add_cpu_experts(measure)
    measure.add_argument("--tokens", type=_count, metavar="N", help="only the first N tokens of the trace")
    measure.add_argument("--logs", type=file, metavar="FOLDER", help="write the decision log of each policy's last run")
    measure.add_argument(
        "--repeats", type=_count, default=REPEATS, metavar="N", help=f"runs of each policy (default {REPEATS})"
    )


def _add_cpu_experts(command: argparse.ArgumentParser | _Group) -> None:
    command.add_argument(
        "--no-cpu-experts", dest="cpu_experts", action="store_false", help="keep the CPU from computing experts"
    )


def _add_blank(command: argparse.ArgumentParser) -> None:
    """Models of which only the configuration is needed, and where they are."""
    command.add_argument("--draft", metavar="NAME|FOLDER", help="a draft model (default: the one that goes with it)")
    command.add_argument("--device", metavar="cuda|cpu", help="default: cuda where there is one")
    command.add_argument("--dtype", choices=DTYPES, help="default: float32 on the CPU, bfloat16 on a GPU")
    command.add_argument("--link-gbps", type=float, metavar="G", help="on the CPU: slow copies to G * 10^9 bytes/s")
    command.add_argument("--host-memory", metavar="SIZE", help="host memory to stay within (default: what is free)")


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="PATH|ORG/NAME",
        help="a checkpoint folder, or a repository in the hub's local cache (default: the bundled pair)",
    )
    command.add_argument(
        "--draft",
        metavar="PATH|ORG/NAME|ngram|none",
        help="a draft model; ngram: without one, from what came before (with --model, default: none)",
    )


def _add_text(command: argparse.ArgumentParser) -> _Group:
    text = command.add_argument_group("text")
    text.add_argument("--chat", action="store_true", help="wrap each prompt in the model's chat template")
    text.add_argument("--system", metavar="TEXT", help="with --chat: what the model is told before")
    text.add_argument(
        "--chat-template-arg", nargs="+", metavar="NAME=VALUE", help="for the chat template: enable_thinking=false"
    )
    text.add_argument("--max-new-tokens", type=_count, default=NEW_TOKENS, metavar="N", help=f"default {NEW_TOKENS}")
    text.add_argument("--ignore-eos", action="store_true", help="go on behind the end of the sequence")
    text.add_argument("--stop", nargs="+", metavar="TEXT", help="end where one of these comes; it is not put out")
    _add_sampling(command)
    return text


def _add_sampling(command: argparse.ArgumentParser) -> None:
    chosen = command.add_argument_group("sampling (default: what the model's generation_config.json says, else greedy)")
    chosen.add_argument("--greedy", action="store_true", help="the likeliest token; nothing holds that the model says")
    chosen.add_argument("--temperature", type=_temperature, metavar="T", help="0 is greedy")
    chosen.add_argument("--top-k", type=int, metavar="N", help="from the N likeliest; 0: all")
    chosen.add_argument("--top-p", type=float, metavar="P", help="from the fewest that have probability P together")
    chosen.add_argument("--min-p", type=float, metavar="P", help="from those with P times the likeliest's at least")
    chosen.add_argument("--repetition-penalty", type=float, metavar="X", help="on tokens in prompt and output; 1: none")
    chosen.add_argument("--presence-penalty", type=float, metavar="X", help="on tokens in the output, -2 to 2")
    chosen.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, times their occurrences")
    chosen.add_argument("--min-tokens", type=int, metavar="N", help="no end of the sequence before N tokens")
    chosen.add_argument("--seed", type=_seed, metavar="N", help="with a temperature: the same draws again")


def _add_drafting(group: _Group, chosen: bool = False) -> None:
    """With `chosen`, a policy may choose the length of its drafts."""
    length = group.add_mutually_exclusive_group()
    length.add_argument("--gamma", type=int, metavar="N", help=f"drafted tokens per round (default {GAMMA})")
    if chosen:
        length.add_argument(
            "--gamma-max",
            type=int,
            metavar="N",
            help=f"without --gamma, the most for policies that choose the length themselves (default {GAMMA_MAX})",
        )
    group.add_argument("--layer-map", type=_numbers, metavar="N,N,...", help="for each MoE layer the draft's layer")


def _add_machine(command: argparse.ArgumentParser, default: str) -> _Group:
    machine = command.add_argument_group("machine")
    room = machine.add_mutually_exclusive_group()
    room.add_argument("--vram", metavar="SIZE", help="memory on the device, such as 18GiB (default: what is free)")
    room.add_argument("--cache", type=float, metavar="FRACTION", help=f"share of all experts with slots ({default})")
    room.add_argument("--slots", type=int, metavar="N", help="expert slots, all layers together")
    machine.add_argument(
        "--context", type=_count, metavar="N", help="longest request to keep room for (default: as asked)"
    )
    machine.add_argument("--host-memory", metavar="SIZE", help="host memory to stay within (default: what is free)")
    machine.add_argument("--device", metavar="cuda|cpu", help="default: cuda where there is one")
    machine.add_argument("--dtype", choices=DTYPES, help="default: float32 on the CPU, bfloat16 on a GPU")
    return machine


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers between commas; ArgumentTypeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers between commas, got {text!r}") from None


def _count(text: str) -> int:
    """A number of tokens; ArgumentTypeError for anything else."""
    return _integer(text, 1, None, "expected a number of tokens, at least 1")


def _seed(text: str) -> int:
    """What a generator can be seeded with; ArgumentTypeError for anything else."""
    return _integer(text, 0, 2**63 - 1, "expected a whole number from 0 to 2^63 - 1")


def _integer(text: str, least: int, most: int | None, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return value


def _temperature(text: str) -> float:
    """A finite number from 0 up; ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got {text!r}")
    return value
