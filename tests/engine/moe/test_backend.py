# ruff: noqa: E402
"""Which kernel a run may ask for, and that nothing needs Triton before one asks for it."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from benchmarks.engine.random_pair import write_random_pair
from engine.__main__ import main
from engine.memory.layout import Layout
from engine.moe.backend import check_kernel
from engine.options import Options
from engine.plan import make_plan
from spmoe.errors import InputError
from tests.engine.tiny import save_tiny
from tests.paths import ROOT

ENGINE = ROOT / "engine"
LAYOUT = Layout.of({"gate_up_proj": ((4, 2), torch.float32), "down_proj": ((2, 2), torch.float32)})


def imported_at_once(path: Path) -> Iterator[str]:
    """What a file imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_triton_is_imported_where_it_was_asked_for_only() -> None:
    needing = {"engine.moe.triton_kernels"}
    for path in ENGINE.rglob("*.py"):
        names = set(imported_at_once(path))
        if any(name.partition(".")[0] == "triton" for name in names) or names & needing:
            assert path.stem in ("triton_kernels", "triton_grouped")
        assert "engine.moe.triton_grouped" not in names or path.stem == "triton_kernels", path


def test_an_unknown_kernel() -> None:
    with pytest.raises(InputError, match=r"^kernel: expected one of plain, triton, got 'cutlass'$"):
        check_kernel("cutlass", (), LAYOUT, torch.device("cpu"), "m")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    check_kernel("plain", (), LAYOUT, torch.device("cpu"), "m")
    with pytest.raises(InputError, match=r"^kernel triton: needs Triton: pip install 'spmoe\[triton\]' \(.*\)$"):
        check_kernel("triton", (), LAYOUT, torch.device("cuda"), "m")


def test_on_the_cpu_only_the_interpreter_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        InputError, match=r"^kernel triton: expected a CUDA device, got cpu; for tests, TRITON_INTERPRET=1"
    ):
        check_kernel("triton", (), LAYOUT, torch.device("cpu"), "m")


@pytest.mark.usefixtures("no_network")
def test_a_model_that_it_does_not_fit_is_refused_by_the_plan(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    folder = save_tiny(tmp_path / "tiny", "gpt-oss")
    with pytest.raises(
        InputError, match=rf"^{folder}: kernel triton: expected gated .* GptOssExperts: transposed, gate"
    ):
        make_plan(folder, None, Options(kernel="triton", dtype="bfloat16"))
    assert make_plan(folder, None, Options(dtype="bfloat16")).options.kernel == "plain"


@pytest.mark.usefixtures("no_network")
def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    target, _ = write_random_pair(tmp_path)
    command = ["run", "--model", str(target), "--prompt", "x", "--kernel", "triton", "--max-new-tokens", "3"]
    capfd.readouterr()
    assert main([*command, "--dtype", "float64"]) == 2
    text, said = capfd.readouterr()
    assert text == "" and said.endswith(", got MixtralExperts: float64\n") and said.count("\n") == 1
    assert main([*command, "--dtype", "float32", "--ignore-eos", "--stats", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["config"]["engine"]["kernel"] == "triton"
