"""The floors: rooms import only from rooms below them, files are small, and nothing asks a part what it is."""

from __future__ import annotations

import ast

import pytest

from tests.conformance.imports import PACKAGES, circle, graph, in_functions, modules, tree

FLOORS: dict[str, tuple[str, ...]] = {
    "spmoe": (
        "spmoe",
        "spmoe.errors",
        "spmoe.files spmoe.progress spmoe.state",
        "spmoe.machine",
        "spmoe.trace",
        "spmoe.policy",
        "spmoe.policy.parts",
        "spmoe.policy.eviction",
        "spmoe.policy.sp_moe spmoe.policy.systems spmoe.policy.foresight spmoe.policy.oracle",
        "spmoe.policy.recipe",
        "spmoe.policy.peers",
        "spmoe.policy.registry",
        "spmoe.scheduler spmoe.drive",
        "spmoe.run",
        "spmoe.results",
        "spmoe.cli",
    ),
    "sim": (
        "sim.pool sim.machine",
        "sim.runner",
        "sim.task",
        "sim.prepared",
        "sim.replay",
        "sim.studies sim.sweeps",
        "sim.plots",
        "sim",
        "sim.cli",
        "sim.__main__",
    ),
    "engine": (
        "engine.options",
        "engine.memory engine.device",
        "engine.moe",
        "engine.checkpoints engine.execution",
        "engine.decoding engine.earlier_run",
        "engine.draft_fit",
        "engine.plan engine.generation engine.run_statistics",
        "engine.engine",
        "engine",
        "engine.profiling",
        "engine.cli",
        "engine.__main__",
    ),
    "benchmarks": (
        "benchmarks",
        "benchmarks.files benchmarks.markdown benchmarks.decisions benchmarks.against",
        "benchmarks.engine benchmarks.sim benchmarks.validation",
        "benchmarks.on_gpu benchmarks.pages",
        "benchmarks.gpu",
    ),
}
"""The rooms of each package from the ground up.  Those in one line do not know each other."""

LAZY = {
    "benchmarks.against": "it runs in another checkout, which may not have them",
    "engine": "torch is loaded when the engine is first used",
    "engine.__main__": "torch is loaded by the command that uses it",
    "engine.moe.backend": "Triton may not be installed",
    "benchmarks.engine.kernel_bandwidth": "Triton may not be installed",
    "benchmarks.on_gpu.fidelity": "SimPy is not installed where the GPU is",
    "training.__main__": "torch is loaded by the command that uses it",
}
"""Modules that import others of ours inside a function, to do without a heavy or optional library."""

MOST_LINES = 300
MOST_LINES_OF_A_CLASS = 200


def room(name: str, floors: tuple[str, ...]) -> str:
    """The room of a module: the longest that contains it.  A package's own room is its `__init__` alone."""
    rooms = [each for floor in floors for each in floor.split()]
    inside = [each for each in rooms if name == each or ("." in each and name.startswith(each + "."))]
    assert inside, f"{name} is in no room: give it a floor"
    return max(inside, key=len)


def test_no_circle_of_imports() -> None:
    assert not circle(graph())


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_from_rooms_below(package: str) -> None:
    floors = FLOORS[package]
    height = {each: number for number, floor in enumerate(floors) for each in floor.split()}
    up = {
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if name.partition(".")[0] == other.partition(".")[0] == package
        and (own := room(name, floors)) != (theirs := room(other, floors))
        and height[theirs] >= height[own]
    }
    assert not up


def test_no_import_hides_in_a_function_without_a_reason() -> None:
    assert {name for name in modules() if in_functions(name)} <= set(LAZY)


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_classes_are_small(package: str) -> None:
    long = {}
    for name, path in modules().items():
        if name.partition(".")[0] != package:
            continue
        long[name] = len(path.read_text(encoding="utf-8").splitlines())
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MOST_LINES_OF_A_CLASS, f"{name}.{node.name}: {lines}"
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}


def test_no_part_of_a_recipe_is_asked_what_it_is() -> None:
    assert {"Batched", "Split", "NextGate"} <= parts_imported(tree("spmoe.policy.registry"))
    asked = {name: kinds_asked(tree(name)) & parts_imported(tree(name)) for name in modules()}
    assert not {name: kinds for name, kinds in asked.items() if kinds}


def parts_imported(module: ast.Module) -> set[str]:
    """The names that a module imports from the policies' rooms."""
    return {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spmoe.policy.")
        if node.module not in ("spmoe.policy.recipe", "spmoe.policy.registry")
        for alias in node.names
    }


def kinds_asked(module: ast.Module) -> set[str]:
    """The names of the classes that a module compares kinds with: `isinstance`, `type(x) is C`, `case C()`."""
    found: set[str] = set()
    for node in ast.walk(module):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1:]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            asked = node.comparators
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        for expression in asked:
            found.update(each.id for each in ast.walk(expression) if isinstance(each, ast.Name))
            found.update(each.attr for each in ast.walk(expression) if isinstance(each, ast.Attribute))
    return found


def test_the_checks_find_what_they_look_for() -> None:
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]})
    assert not circle({"a": ["b", "c"], "b": ["c"], "c": []})
    asks = "isinstance(a, Lru)\ntype(b) is Split\nmatch c:\n    case parts.NextGate(): pass\n    case D.E(x=F): pass"
    assert kinds_asked(ast.parse(asks)) == {"Lru", "Split", "parts", "NextGate", "D", "E"}
    with pytest.raises(AssertionError, match="give it a floor"):
        room("sim.attic", FLOORS["sim"])
