"""Who may import whom, and what may not be called anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

FORBIDDEN = {
    "spmoe": {"torch", "simpy", "pandas", "transformers", "rich", "sim", "engine"},
    "sim": {"torch", "transformers", "engine"},
    "engine": {"simpy", "pandas", "sim"},
}
FILES = {package: sorted((ROOT / package).rglob("*.py")) for package in FORBIDDEN}
EVERY = [path for files in FILES.values() for path in files]


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, by the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(each.value) for each in call.keywords if each.arg == name), None)


@pytest.mark.parametrize("package", ["spmoe", "sim"])
def test_a_fresh_interpreter_gets_nothing_heavy(package: str) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES[package]]
    wanted = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    script = f"import sys, {', '.join(wanted)}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert package in found.stdout.split()
    assert not FORBIDDEN[package].intersection(found.stdout.split())


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_what_its_package_may_not_know(package: str) -> None:
    for path in FILES[package]:
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & FORBIDDEN[package], path


def test_the_core_is_plain_python_and_numpy() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "zstandard", "spmoe"}
    for path in FILES["spmoe"]:
        assert {name.partition(".")[0] for name in imports(path)} <= allowed, path


def test_no_part_of_the_core_uses_one_below_it() -> None:
    floors = ["machine", "trace", "state", "policy", "results"]
    for path in FILES["spmoe"]:
        room = path.relative_to(ROOT / "spmoe").parts[0]
        if room not in floors:
            continue
        below = {f"spmoe.{floor}" for floor in floors[floors.index(room) + 1 :]}
        used = {".".join(name.split(".")[:2]) for name in imports(path)}
        assert not used & below, path


def test_nothing_runs_what_it_reads() -> None:
    for path in EVERY:
        assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(imports(path)), path
        for name, call in calls(path):
            assert name not in ("eval", "exec", "builtins.eval", "builtins.exec"), path
            if name == "torch.load":
                assert keyword(call, "weights_only") is True, path
            if name in ("np.load", "numpy.load"):
                assert keyword(call, "allow_pickle") is False, path


def test_no_random_numbers_and_no_clock_in_what_decides() -> None:
    for path in [*FILES["spmoe"]]:
        if path.relative_to(ROOT / "spmoe").parts[0] in ("state", "policy", "scheduler", "drive"):
            assert not {"random", "time", "datetime", "threading", "secrets"} & set(imports(path)), path
