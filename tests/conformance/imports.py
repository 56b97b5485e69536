"""The import graph of this repository's packages, read from the source: imports count wherever in a file they are."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.paths import ROOT

PACKAGES = ("spmoe", "sim", "engine", "benchmarks", "training")


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the packages by its dotted name; a package stands for its `__init__`."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(name: str) -> ast.Module:
    """The parsed module."""
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def targets(node: ast.AST) -> Iterable[str]:
    """Those of our modules that an import statement names; nothing for any other node."""
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        named = [name if name in modules() else node.module or "" for name in whole]
    else:
        named = []
    return [name for name in named if name in modules()]


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """What each module imports of the others."""
    return {
        name: frozenset(other for node in ast.walk(tree(name)) for other in targets(node) if other != name)
        for name in modules()
    }


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle in a graph, from a node back to itself; empty where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def in_functions(name: str) -> set[str]:
    """Our modules that a module imports inside its functions."""
    functions = [node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {other for function in functions for node in ast.walk(function) for other in targets(node)}
