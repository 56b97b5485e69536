"""The commands of `python -m engine`.

Each is imported when it is called: all but verify-log need PyTorch, which `--help` and logs do without.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from types import MappingProxyType
from typing import Final

from spmoe.cli import Command, Commands
from spmoe.errors import InputError

NEEDED: Final = ("torch", "transformers", "safetensors", "tokenizers", "greenlet")
"""What comes with `pip install 'spmoe[engine]'`."""


def _imported(command: str, module: str, function: str) -> Command:
    """Runs that function of that module; InputError where what it imports is not installed."""

    def run(options: argparse.Namespace) -> None:
        try:
            imported = import_module(module)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in NEEDED:
                raise
            raise InputError(
                f"{command} needs PyTorch and transformers: pip install 'spmoe[engine]' ({error})"
            ) from None
        getattr(imported, function)(options)

    return run


COMMANDS: Final[Commands] = MappingProxyType(
    {
        "run": _imported("run", "engine.cli.run", "run"),
        "chat": _imported("chat", "engine.cli.chat", "chat"),
        "record": _imported("record", "engine.cli.record", "record"),
        "profile": _imported("profile", "engine.cli.profile", "profile"),
        "measure": _imported("measure", "engine.cli.measure", "measure"),
        "verify-log": _imported("verify-log", "engine.cli.verify_log", "verify"),
    }
)
