"""What a run is set up with: numbers, devices, machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.device import bits_of, resolve_device, resolve_dtype
from engine.options import DTYPES, FASTEST, Options
from spmoe.errors import InputError
from spmoe.machine.hardware import load_hardware

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_the_cpu_in_float32() -> None:
    assert resolve_device(Options()) == CPU
    assert resolve_dtype(Options(), CPU) == torch.float32


@pytest.mark.usefixtures("two_gpus")
def test_with_a_gpu_it_is_that_in_bfloat16() -> None:
    assert resolve_device(Options()).type == "cuda"
    assert resolve_device(Options(device="cuda:1")).index == 1
    assert resolve_device(Options(device="cpu")) == CPU
    assert resolve_dtype(Options(), torch.device("cuda")) == torch.bfloat16


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["tpu", "meta", "cpu:1", "cuda:x", "CPU!", "", "cuda", "cuda:3"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="device"):
        resolve_device(Options(device=name))


@pytest.mark.usefixtures("two_gpus")
def test_only_the_link_of_a_cpu_can_be_slowed_down() -> None:
    with pytest.raises(InputError, match="there are 2, counted from 0"):
        resolve_device(Options(device="cuda:2"))
    with pytest.raises(InputError, match="link_gbps"):
        resolve_device(Options(link_gbps=2.0))


@pytest.mark.parametrize("name", DTYPES)
def test_types_have_their_bits(name: str) -> None:
    dtype = resolve_dtype(Options(dtype=name), CPU)
    assert str(dtype) == f"torch.{name}"
    assert bits_of(dtype) == torch.finfo(dtype).bits


@pytest.mark.parametrize("name", ["int8", "float", "FLOAT32", "Tensor"])
def test_an_unknown_type(name: str) -> None:
    with pytest.raises(InputError, match=f"dtype: expected one of float64, .*, got '{name}'"):
        resolve_dtype(Options(dtype=name), CPU)


@pytest.mark.parametrize("gbps", [0, -1, math.nan, math.inf, FASTEST * 2, 1e300])
def test_no_link_is_that_fast_or_slow(gbps: float) -> None:
    with pytest.raises(InputError, match=r"link_gbps: expected .* above 0"):
        Options(link_gbps=gbps).resolve_hardware()


def test_a_slow_link_is_what_the_policy_reckons_with() -> None:
    assert Options(link_gbps=2.5).resolve_hardware().link.bandwidth == 2_500_000_000
    assert Options(link_gbps=FASTEST).resolve_hardware().link.bandwidth == 10**15
    assert Options().resolve_hardware() == load_hardware("rtx-4090")
    assert Options(virtual_time="rtx-3090").resolve_hardware() == load_hardware("rtx-3090")
    assert Options(hardware=load_hardware("h200")).resolve_hardware().name == "h200"
    with pytest.raises(InputError, match="in virtual time the profile says"):
        Options(virtual_time="rtx-3090", link_gbps=2.0).resolve_hardware()
    with pytest.raises(InputError, match=r"missing\.json"):
        Options(hardware=str(Path("missing.json"))).resolve_hardware()


@pytest.mark.parametrize(("given", "meant"), [(None, None), (4096, 4096), ("2GiB", 2**31), ("3 KB", 3000), ("7", 7)])
def test_host_memory(given: Any, meant: int | None) -> None:
    assert Options(host_memory=given).resolve_host_memory() == meant


@pytest.mark.parametrize("given", ["", "x", "0", "-1", "nan", 0, -5, True, 1.5])
def test_host_memory_that_is_none(given: Any) -> None:
    with pytest.raises(InputError, match="host_memory: "):
        Options(host_memory=given).resolve_host_memory()
