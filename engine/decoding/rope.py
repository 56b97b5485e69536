"""Rotary embeddings whose frequencies depend on how long the sequence is.

A pass over several tokens rotates all of them by the frequencies of the longest sequence among theirs; token by token,
each has its own.  Windows must not be longer than both come to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_LONG = "longrope"
_DYNAMIC = "dynamic"


class LengthDependentRope:
    """The rotary embeddings of a model, as far as they depend on the length of the sequence; often none does."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._dynamic: list[tuple[Any, str]] = []
        """Modules, and what the names of their frequencies begin with."""
        self._switches: list[int] = []
        """Lengths behind which all frequencies change once."""
        self._grows: list[int] = []
        """Lengths behind which they change with every token."""
        modules: Iterator[Any] = model.modules()
        for module in modules:
            kinds = getattr(module, "rope_type", None)
            if kinds is None:
                continue
            parameters = module.config.rope_parameters
            for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
                own = parameters if layer_type is None else parameters[layer_type]
                if kind == _LONG:
                    self._switches.append(int(own["original_max_position_embeddings"]))
                elif _DYNAMIC in kind:
                    self._grows.append(int(module.original_max_seq_len))
                    self._dynamic.append((module, "" if layer_type is None else f"{layer_type}_"))

    @property
    def varies(self) -> bool:
        """Whether it depends on the length at all."""
        return bool(self._switches or self._grows)

    def reset(self) -> None:
        """A new request: what a longer one before it has left behind does not count."""
        for module, prefix in self._dynamic:
            original = getattr(module, f"{prefix}original_inv_freq")
            device = getattr(module, f"{prefix}inv_freq").device
            module.register_buffer(f"{prefix}inv_freq", original.to(device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    def alike(self, position: int) -> int | None:
        """How many tokens from `position` on a pass may read so that each is rotated as in a pass by itself; None: any
        number."""
        ends = [switch for switch in self._switches if position < switch]
        ends += [max(growth, position + 1) for growth in self._grows]
        return min(ends) - position if ends else None
