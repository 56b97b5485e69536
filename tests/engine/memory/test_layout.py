# ruff: noqa: E402
"""Blobs: where the parameters of an expert lie."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from hypothesis import given
from hypothesis import strategies as st

from engine.memory.layout import ALIGNMENT, Field, Layout

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
PARAMETERS = st.dictionaries(
    st.sampled_from(["up", "down", "up_bias", "down_bias", "scale"]),
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), st.sampled_from(DTYPES)),
    min_size=1,
)


def test_a_small_expert_by_hand() -> None:
    layout = Layout.of(
        {"gate_up": ((6, 10), torch.float32), "bias": ((6,), torch.bfloat16), "down": ((4, 8), torch.float32)}
    )
    assert layout.fields == (
        Field("gate_up", (6, 10), torch.float32, 0),  # 240 bytes
        Field("bias", (6,), torch.bfloat16, 256),  # 12 bytes
        Field("down", (4, 8), torch.float32, 512),  # 128 bytes
    )
    assert (layout.size, layout.nbytes) == (768, 240 + 12 + 128)


def test_a_full_multiple_leaves_no_gap() -> None:
    assert Layout.of({"a": ((64,), torch.float32), "b": ((1,), torch.float32)}).size == 512


@given(PARAMETERS)
def test_fields_are_aligned_apart_and_in_order(parameters: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    layout = Layout.of(parameters)
    assert {field.name: (field.shape, field.dtype) for field in layout.fields} == parameters
    assert [field.name for field in layout.fields] == list(parameters)
    ends = [0]
    for field in layout.fields:
        assert field.offset % ALIGNMENT == 0
        assert ends[-1] <= field.offset < ends[-1] + ALIGNMENT
        ends.append(field.offset + field.nbytes)
    assert layout.size % ALIGNMENT == 0
    assert ends[-1] <= layout.size < ends[-1] + ALIGNMENT
    assert layout.nbytes == sum(field.nbytes for field in layout.fields) <= layout.size


@given(PARAMETERS)
def test_views_are_the_blob_and_nothing_else(parameters: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    layout = Layout.of(parameters)
    blobs = torch.zeros((3, layout.size), dtype=torch.uint8)
    views = layout.views(blobs[1])
    for number, view in enumerate(views.values(), start=1):
        view.fill_(number)
    again = layout.views(blobs[1])
    for number, (name, (shape, dtype)) in enumerate(parameters.items(), start=1):
        assert again[name].shape == shape
        assert again[name].dtype == dtype
        assert torch.equal(again[name], torch.full(shape, number, dtype=dtype))
        offset = again[name].data_ptr() - blobs.data_ptr() - layout.size
        assert offset == next(field.offset for field in layout.fields if field.name == name)
    assert not blobs[0].any() and not blobs[2].any()
