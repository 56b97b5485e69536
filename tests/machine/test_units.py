"""Sizes and durations, in and out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.machine.units import ceil_ns, format_ms, format_size, parse_size

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("18GiB", 18 * GIB),
        ("24GB", 24 * 10**9),
        ("24g", 24 * GIB),
        ("24 G", 24 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        (".5tb", 5 * 10**11),
        ("512 MiB", 512 * 1024**2),
        ("2kb", 2000),
        ("2k", 2048),
        ("1000", 1000),
        ("1000 B", 1000),
        ("1.9 B", 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "nan", "inf GiB", "1e3", "1 PB", "1,5GiB", "0", "0.2 B", "1 GiB!", "\u0661GiB", "2ib"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^size: expected ") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


def test_formats() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 3 * GIB // 2, -GIB)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
        "-1.0 GiB",
    ]
    assert [format_ms(ns) for ns in (0, 12_300, 136_054, 3_911_392, 29_360_000, 1_250_000_000)] == [
        "0.00 ms",
        "0.0123 ms",
        "0.136 ms",
        "3.91 ms",
        "29.4 ms",
        "1,250 ms",
    ]


@given(st.integers(1, 10**6), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_a_formatted_size_parses_back(number: int, unit: str) -> None:
    size = parse_size(f"{number} {unit}")
    assert abs(parse_size(format_size(size)) - size) <= size / 20


@given(st.integers(0, 10**15), st.integers(1, 10**15))
def test_times_round_up_and_by_less_than_one(amount: int, rate: int) -> None:
    ns = ceil_ns(amount, rate)
    assert (ns - 1) * rate < amount * 10**9 <= ns * rate
