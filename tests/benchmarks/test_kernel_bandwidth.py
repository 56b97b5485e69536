# ruff: noqa: E402
"""The benchmark of the kernels, as far as it can be followed without a GPU: times are given, all else is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from benchmarks.engine.kernel_bandwidth import LAYERS, Sizes, Subject, main, measure
from engine.profiling.fit import Median


def timer(ns: float) -> Callable[[Callable[[], object]], Median]:
    """All work takes so long."""

    def timed(work: Callable[[], object]) -> Median:
        work()
        return Median(ns, ns, ns, 1)

    return timed


def test_weights_of_the_experts_that_were_routed_to_are_what_is_read() -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    subject = Subject(Sizes(16, 24, 4, 4, 2), torch.device("cpu"), torch.float32)
    row = measure(subject, 2, timer(LAYERS * 1000.0), timer(LAYERS * 3000.0))
    assert (row["tokens"], row["experts"]) == (2, 4)  # every token goes to all four
    assert row["difference"] < 1e-5
    assert row["kernels"]["gb_per_s"] == round(4 * 3 * 16 * 24 * 4 / 1000, 1)  # bytes per ns of one layer
    assert row["layer"]["median_us"] == row["layer_plain"]["median_us"] == 1
    assert row["called"]["median_us"] == 3


def test_layers_that_follow_each_other_use_other_slots() -> None:
    subject = Subject(Sizes(16, 24, 8, 2, 2), torch.device("cpu"), torch.float32)
    layers = subject.layers(3)
    assert [layer.first for layer in layers] == [0, 8] * (LAYERS // 2)
    assert len({tuple(layer.counts) for layer in layers}) > 1
    assert all(sum(layer.counts.values()) == 6 for layer in layers)
    assert [layer.counts for layer in subject.layers(3)] == [layer.counts for layer in layers]


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernel_bandwidth", "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "kernel_bandwidth: needs a CUDA device, and --device cpu is none here\n"
