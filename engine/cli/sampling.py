"""How tokens are chosen, from the command line."""

from __future__ import annotations

import argparse
from typing import Any, Final

from engine.decoding.sampling import Sampling
from engine.plan import Plan
from spmoe.errors import InputError

_FIELDS: Final = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "seed",
    "greedy",
)


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of it, as `Engine.stream` takes it."""
    return {name: getattr(options, name) for name in _FIELDS}


def chosen_sampling(plan: Plan, options: argparse.Namespace) -> Sampling:
    """What holds: the command line's, else the checkpoint's.  Raises InputError for a value out of range."""
    return plan.sampling.override(**sampling_options(options))


def chat_template_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The pairs NAME=VALUE of `--chat-template-arg`; true, false and null are what they are in JSON, others texts.

    Raises InputError for one that is none, or is given twice.
    """
    found: dict[str, Any] = {}
    for pair in options.chat_template_arg or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--chat-template-arg: expected NAME=VALUE, got {pair!r}")
        if name in found:
            raise InputError(f"--chat-template-arg: {name} is given twice")
        found[name] = {"true": True, "false": False, "null": None}.get(value.lower(), value)
    return found
