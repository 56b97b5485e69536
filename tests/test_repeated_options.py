"""Options given twice, over every option of every command of both programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import pytest

from engine.cli.parser import parser as engine_parser
from sim.cli.parser import parser as sim_parser
from spmoe.errors import InputError

PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {"sim": sim_parser, "engine": engine_parser}


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those with a value."""
    yield from (action for action in command._actions if action.option_strings and action.nargs != 0)


def value(action: argparse.Action) -> str:
    """One that the option takes."""
    return str(next(iter(action.choices))) if action.choices else "1"


EVERY = [
    pytest.param(program, name, action.option_strings[0], id=f"{program} {name} {action.option_strings[0]}")
    for program, build in PROGRAMS.items()
    for name, command in commands(build()).items()
    for action in options(command)
]


@pytest.mark.parametrize(("program", "name", "option"), EVERY)
def test_values_add_up_and_a_single_value_is_refused(program: str, name: str, option: str) -> None:
    top = PROGRAMS[program]()
    command = commands(top)[name]
    (action,) = (each for each in options(command) if option in each.option_strings)
    words = [name]
    for other in command._actions:
        if other is not action and not other.option_strings and other.nargs != "*":
            words.append(value(other))
        elif other is not action and other.required:
            words += [other.option_strings[0], value(other)]
    once, twice = [option, value(action)], [option, value(action), option, value(action)]
    given = getattr(top.parse_args([*words, *once]), action.dest)
    if action.nargs == "+":
        assert len(given) == 1  # In place of the default.
        assert getattr(top.parse_args([*words, *twice]), action.dest) == given * 2
    else:
        with pytest.raises(InputError, match=rf"{option}\S*: given twice"):
            top.parse_args([*words, *twice])
        # What one command line had says nothing of the next one.
        assert getattr(top.parse_args([*words, *once]), action.dest) == given


def test_both_kinds_of_options_are_there() -> None:
    kinds = {
        action.nargs for build in PROGRAMS.values() for each in commands(build()).values() for action in options(each)
    }
    assert kinds == {None, "+"} and len(EVERY) > 80


def test_added_values_keep_their_order() -> None:
    given = sim_parser().parse_args(["replay", "t", "--policy", "a", "--cache", "0.5", "--policy", "b", "c"])
    assert given.policy == ["a", "b", "c"]
