"""`python -m engine record`: many prompts through a pair, written down as a routing trace."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engine.checkpoints.bundled import ABOUT
from engine.checkpoints.model_pair import describe_target
from engine.cli.inputs import Models, check_trace_output, encode_and_plan, find_models
from engine.cli.messages import note, telling_failures
from engine.cli.prompts import Prompt, read_prompts
from engine.cli.sampling import chosen_sampling, sampling_options
from engine.cli.spool import Spool
from engine.cli.trace_output import recorder_of, trace_header
from engine.decoding.sampling import SEEDS
from engine.engine import Engine
from engine.plan import Plan, make_plan
from spmoe.cli import printable
from spmoe.errors import InputError
from spmoe.files import check_distinct
from spmoe.progress import progress_bar
from spmoe.trace.schema import FORECAST_NAMES
from spmoe.trace.writer import write_trace

POLICY: Final = "on-demand.lru-per-layer"
"""What experts are where makes no difference to what is recorded; this one asks for nothing beside it."""


def record(options: argparse.Namespace) -> None:
    """Run every prompt and write the trace, whole or not at all; InputError for whatever cannot be done."""
    source, out = Path(options.prompts), Path(options.out)
    check_distinct(prompts=source, out=out)
    check_trace_output("--out", out, options.max_new_tokens)
    prompts = read_prompts(source)
    models = find_models(options)
    encoded, plan = _plan(models, prompts, options)
    model = describe_target(plan.blueprint.geometry)
    with telling_failures(plan), Spool(model) as spool, Engine(plan, record=True, lines=spool) as engine:
        if options.model is None:
            note(f"no --model, so the bundled pair runs: {ABOUT}")
        for line in plan.notes:
            note(line)
        with progress_bar(len(prompts), "prompts") as progress:
            for number, tokens in enumerate(encoded):
                engine.generate(tokens, options.max_new_tokens, **_sampling(options, number))
                progress(f"{recorder_of(engine).tokens:,} tokens recorded", 1)
        header = trace_header(plan, recorder_of(engine), _how(plan, source, len(prompts), options))
        write_trace(out, header, spool)
        acceptance = engine.transfers().acceptance
    for name in FORECAST_NAMES:
        if name not in header.forecasts and (plan.draft is not None or name != "draft"):
            note(f"the trace has no {name} forecasts: these models do not give them")
    accepted = "" if acceptance is None else f"; {acceptance:.1%} of drafted tokens were accepted"
    print(printable(f"{out}: {header.tokens:,} tokens behind {_prompts(len(prompts))}{accepted}"))


def _plan(models: Models, prompts: list[Prompt], options: argparse.Namespace) -> tuple[list[list[int]], Plan]:
    """With all experts resident on the CPU, if nothing is said of it and they fit: nothing has to be moved then."""
    encoded, plan = encode_and_plan(models, prompts, options, policy=POLICY)
    if plan.device.type == "cpu" and options.vram is options.cache is options.slots is None:
        roomy = make_plan(*models, replace(plan.options, cache=1.0))
        try:
            roomy.check_memory()
        except InputError:
            return encoded, plan
        return encoded, roomy
    return encoded, plan


def _sampling(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """How to choose tokens behind the prompt of that number: with a seed, each has draws of its own."""
    seed = None if options.seed is None else (options.seed + number) % SEEDS
    asked = {**sampling_options(options), "seed": seed}
    return {**asked, "stop": options.stop or (), "ignore_eos": options.ignore_eos}


def _how(plan: Plan, source: Path, prompts: int, options: argparse.Namespace) -> str:
    sampling = chosen_sampling(plan, options)
    drawn = "" if sampling.greedy or sampling.seed is None else f", seed {sampling.seed}"
    return (
        f"engine record, gamma {plan.setting.gamma}, {sampling.explain()}{drawn}, {_prompts(prompts)} "
        f"of {printable(source.name)}"
    )


def _prompts(number: int) -> str:
    return "1 prompt" if number == 1 else f"{number:,} prompts"
