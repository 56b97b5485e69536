"""Gated experts as a kernel has to know them: sizes, number format, activation, and where fields lie in a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

import torch
from torch.nn.functional import gelu, silu

from engine.memory.layout import Layout
from spmoe.errors import InputError

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)

ACTIVATIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = MappingProxyType(
    {"silu": silu, "gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh")}
)
_FIELDS: Final = ("gate_up_proj", "down_proj")


class Gated(NamedTuple):
    """Experts that compute down(activation(gate(x)) * up(x)).

    In a slot lie, `gate_up` elements from its start, gate and, behind it, up, each [width, hidden], and `down` elements
    from its start, down [hidden, width].
    """

    activation: str
    hidden: int
    width: int
    dtype: torch.dtype
    gate_up: int
    down: int

    @classmethod
    def of(cls, module: Any, layout: Layout, model: str) -> Self:
        """What `module`, of `model` and with experts of this layout, computes; InputError where it is another thing."""
        obstacles = _obstacles(module, layout)
        activation = None if obstacles else _activation(module)
        if activation is None:
            found = ", ".join(obstacles) or "another activation"
            raise InputError(
                f"{model}: kernel triton: expected gated experts with SiLU or GELU, without biases, not transposed, in "
                f"float32, bfloat16 or float16, got {type(module).__name__}: {found}"
            )
        fields = {field.name: field for field in layout.fields}
        gate_up, down = (fields[name] for name in _FIELDS)
        hidden, width = down.shape
        size = down.dtype.itemsize
        return cls(activation, hidden, width, down.dtype, gate_up.offset // size, down.offset // size)


def _obstacles(module: Any, layout: Layout) -> list[str]:
    """In how far these are not gated experts as the kernel knows them."""
    features = {
        "no gate": not module.has_gate,
        "transposed": module.is_transposed,
        "gate and up interleaved": not module.is_concatenated,
        "a norm behind them": getattr(module, "has_post_expert_norm", False),
    }
    formats = {field.dtype for field in layout.fields}
    return [
        *(name for name, there in features.items() if there),
        *(field.name for field in layout.fields if field.name not in _FIELDS),
        *sorted(str(each).removeprefix("torch.") for each in formats if len(formats) > 1 or each not in DTYPES),
    ]


def _activation(module: Any) -> str | None:
    """Which of `ACTIVATIONS` the module has; found by what it answers, as families may do more than activate."""
    gates = [*torch.linspace(-20, 20, 801).tolist(), -1e3, 1e3]
    gate, up = torch.tensor([*product(gates, (-1e3, -1.0, 0.5, 1e3))], dtype=torch.float64).T
    answer = module._apply_gate(torch.cat([gate, up])[None])
    if answer.shape != (1, len(gate)):
        return None
    for name, function in ACTIVATIONS.items():
        if torch.allclose(answer[0].double(), function(gate) * up, rtol=1e-5, atol=1e-5):
            return name
    return None
