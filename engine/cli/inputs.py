"""What `run` and `record` begin with: models, prompts in tokens, and a plan that has room for them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpoints.bundled import bundled_pair
from engine.checkpoints.hub_cache import find_checkpoint
from engine.checkpoints.model_pair import check_folders
from engine.cli.prompts import Chat, Prompt, encode_prompts
from engine.cli.sampling import chat_template_arguments, chosen_sampling
from engine.decoding.positions import trained_positions
from engine.options import NGRAM, NO_DRAFT, Options
from engine.plan import Plan, TooLong, make_plan
from spmoe.cli import fields_given
from spmoe.errors import InputError
from spmoe.files import atomic_write
from spmoe.trace.compression import zstandard_for


class Models(NamedTuple):
    """Checkpoint folders of a target and, unless there is no speculation, its draft."""

    target: Path
    draft: Path | None


def find_models(options: argparse.Namespace) -> Models:
    """The models that the command line names, or the bundled pair, checked; InputError where they are not as they
    should be."""
    if options.model is not None:
        modelless = options.draft in (None, NGRAM, NO_DRAFT)
        models = Models(find_checkpoint(options.model), None if modelless else find_checkpoint(options.draft))
    elif options.draft in (NGRAM, NO_DRAFT):
        models = Models(bundled_pair().target, None)
    elif options.draft is not None:
        raise InputError("--draft: expected --model too")
    else:
        models = Models(*bundled_pair())
    check_folders(*models)
    return models


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Options` that the command line says."""
    return {**fields_given(options, Options), "ngram": options.draft == NGRAM}


def encode_and_plan(
    models: Models, prompts: Sequence[Prompt], options: argparse.Namespace, **chosen: Any
) -> tuple[list[list[int]], Plan]:
    """The tokens of `prompts`, and a plan for `models` under what the command line says and what is `chosen` for it.

    Unless the command line says how much, there is room for the longest of them and its output.  Raises InputError,
    naming a prompt that is too long, for whatever cannot be run.
    """
    if not options.chat and (options.system is not None or options.chat_template_arg):
        raise InputError("--system, --chat-template-arg: expected --chat too")
    chat = Chat(options.system, chat_template_arguments(options)) if options.chat else None
    encoded = encode_prompts(models.target, prompts, chat)
    new = options.max_new_tokens
    longest = max(range(len(encoded)), key=lambda number: len(encoded[number]))
    given = {**engine_options(options), **chosen}
    try:
        if options.context is None:
            given["context"] = len(encoded[longest]) + new
        plan = make_plan(*models, Options(**given))
    except TooLong as error:
        raise InputError(str(error) if options.context else f"{prompts[longest].name}: {error}") from None
    chosen_sampling(plan, options)
    limit = trained_positions(plan.blueprint.shell.config)
    if options.context is None and limit is not None and plan.context > limit:
        raise InputError(
            f"{prompts[longest].name}: {models.target}: the model has positions for {limit} tokens, expected no more "
            f"than that of prompt and output, got {plan.context} (--context {plan.context} goes on behind them)"
        )
    for prompt, tokens in zip(prompts, encoded, strict=True):
        try:
            plan.check_request(tokens, new)
        except InputError as error:
            raise InputError(f"{prompt.name}: {error}") from None
    return encoded, plan


def check_trace_output(option: str, path: Path, new_tokens: int) -> None:
    """InputError where no trace could be written to `path`, which `option` names, at the end."""
    if new_tokens < 2:
        raise InputError(f"{option}: the first token belongs to the prompt; expected --max-new-tokens of at least 2")
    if path.suffix == ".zst":
        zstandard_for(path)
    try:
        with atomic_write(path):
            raise _Writable
    except _Writable:
        pass


class _Writable(Exception):
    """Leaves a file that could be opened, and takes it away again."""
