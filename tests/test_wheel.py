"""The wheel holds every file that the checkout has, and replays a trace where nothing else of the project is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from spmoe import __version__
from spmoe.trace.bundled import bundled_trace, write_excerpt
from spmoe.trace.reader import TraceFile
from tests.paths import ROOT, TRACES

SOURCES = ("spmoe", "sim", "engine", "profiles", "models")
ELSEWHERE = {"profiles": "spmoe/profiles", "models": "engine/models"}
"""Folders that people find at the top of a checkout, and where a wheel has them."""
LEFT_OUT = ("models/README.md", "models/pico-32l/", "models/pico/control/")
"""Records of training, and a model that serves only as a comparison."""
LEFT_OUT_KINDS = (".png", "figures.json", "run.json", ".csv")

pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for setuptools builds inside the tree and ships what an earlier build left there."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "states"))
    build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of the installed wheel, away from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(words, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False)


def shipped(path: Path) -> bool:
    """Whether a wheel holds this file of the checkout."""
    name = path.relative_to(ROOT).as_posix()
    return not (
        "__pycache__" in path.parts
        or "states" in path.parts
        or name.startswith(LEFT_OUT)
        or name.endswith(LEFT_OUT_KINDS)
    )


def in_wheel(path: Path) -> str:
    top, _, rest = path.relative_to(ROOT).as_posix().partition("/")
    return f"{ELSEWHERE.get(top, top)}/{rest}"


def test_no_package_and_no_data_file_is_missing(wheel: Path) -> None:
    expected = {
        in_wheel(path) for top in SOURCES for path in (ROOT / top).rglob("*") if path.is_file() and shipped(path)
    }
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_what_is_installed_runs_on_its_own(installed: Path) -> None:
    where = run(installed, sys.executable, "-c", "import spmoe, sim, engine; print(spmoe.__file__, sim.__file__)")
    assert all(path.startswith(str(installed)) for path in where.stdout.split())


@pytest.mark.parametrize("name", ["sim", "engine"])
def test_the_console_scripts_are_the_programs(installed: Path, name: str) -> None:
    script = str(installed / "bin" / f"spmoe-{name}")
    assert run(installed, script, "--version").stdout == f"spmoe {__version__}\n"
    assert run(installed, script, "--help").stdout.startswith(f"usage: spmoe-{name} ")
    as_module = run(installed, sys.executable, "-m", name, "--help")
    assert as_module.stdout.startswith(f"usage: python -m {name} ")
    wrong = run(installed, script, "no-such-command")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
    assert f"see spmoe-{name} --help" in wrong.stderr


def test_an_installed_wheel_has_a_trace_to_replay(installed: Path) -> None:
    replayed = run(installed, str(installed / "bin" / "spmoe-sim"), "replay", "--policy", "on-demand.lru")
    assert replayed.returncode == 0, replayed.stderr
    assert "mixtral-8x7b" in replayed.stdout and "on-demand.lru" in replayed.stdout


def test_the_bundled_trace_is_the_beginning_of_the_long_one(tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    write_excerpt(TRACES / "mixtral.jsonl", again)
    made, kept = TraceFile(again), TraceFile(bundled_trace())
    assert made.header == kept.header and list(made) == list(kept)
    assert kept.header.source.kind == "synthetic" and kept.header.source.how.startswith("the first 342 of 2006 tokens")
