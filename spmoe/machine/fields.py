"""Strict reading of the JSON files that describe models and machines: nothing unknown, missing or absurd passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from spmoe.errors import InputError


class Fields:
    """One JSON object, read field by field; `done()` refuses fields that were not read.

    Numbers are exact (int or Decimal).  Every complaint is an InputError "PLACE: field PATH: expected ..., got ...".
    """

    __slots__ = ("_unread", "_values", "path", "place")

    def __init__(self, place: str, values: Mapping[str, Any], path: str = "") -> None:
        self.place = place
        self._values = values
        self.path = path
        self._unread = set(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def has(self, path: str) -> bool:
        """Whether there is something at the dotted `path`, such as "link.latency_us"."""
        value: object = self._values
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True

    def _take(self, name: str, expected: str) -> Any:
        if name not in self._values:
            raise InputError(f"{self.place}: field {self.path}{name}: expected {expected}, but it is missing")
        self._unread.discard(name)
        return self._values[name]

    def _refuse(self, name: str, expected: str, value: object) -> NoReturn:
        shown = str(value) if isinstance(value, Decimal) else json.dumps(value, default=str)
        raise InputError(f"{self.place}: field {self.path}{name}: expected {expected}, got {shown}")

    def text(self, name: str, choices: tuple[str, ...] = ()) -> str:
        expected = f"one of {', '.join(choices)}" if choices else "a text"
        value = self._take(name, expected)
        if not isinstance(value, str) or not value or (choices and value not in choices):
            self._refuse(name, expected, value)
        return value

    def number(self, name: str, zero: bool = False) -> Decimal:
        """A finite number above zero, or with `zero` from there on; the upper limit only keeps arithmetic on it
        short."""
        expected = f"a number {'from' if zero else 'above'} 0 (and at most 10^12)"
        value = self._take(name, expected)
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 10**12:
            self._refuse(name, expected, value)
        if not value and not zero:
            self._refuse(name, expected, value)
        return Decimal(value)

    def numbers(self, name: str) -> tuple[Decimal, ...]:
        """At least one finite number, all above zero."""
        expected = "a list of numbers above 0 (and at most 10^12)"
        values = self._take(name, expected)
        if not isinstance(values, list) or not values or not all(map(_positive, values)):
            self._refuse(name, expected, values)
        return tuple(map(Decimal, values))

    def whole(self, name: str, zero: bool = False) -> int:
        """A whole number above zero, or with `zero` from there on."""
        expected = f"a whole number {'from' if zero else 'above'} 0"
        value = self._take(name, expected)
        if isinstance(value, bool) or not isinstance(value, int) or value < (not zero):
            self._refuse(name, expected, value)
        return value

    def flag(self, name: str) -> bool:
        """True or false; a missing one is false."""
        if name not in self:
            return False
        value = self._take(name, "true or false")
        if not isinstance(value, bool):
            self._refuse(name, "true or false", value)
        return value

    def one_of(self, name: str, parse: Callable[[str], float]) -> float:
        """A number that `parse` accepts; its InputError becomes this field's."""
        value = self.number(name)
        try:
            return parse(str(value))
        except InputError as error:
            expected = str(error).partition(": ")[2]
            raise InputError(f"{self.place}: field {self.path}{name}: {expected}") from None

    def is_null(self, name: str) -> bool:
        """Whether the (required) field is null; a null counts as read."""
        if self._values.get(name, ...) is not None:
            return False
        self._unread.discard(name)
        return True

    def section(self, name: str) -> Fields:
        value = self._take(name, "an object")
        if not isinstance(value, dict):
            self._refuse(name, "an object", value)
        return Fields(self.place, value, f"{self.path}{name}.")

    def sections(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self._take(name, "a list of objects")
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._refuse(name, "a list of objects", value)
        return [Fields(self.place, each, f"{self.path}{name}.{number}.") for number, each in enumerate(value)]

    def skip(self, name: str) -> None:
        """An object that is for the reader of the file alone."""
        self.section(name)

    def done(self) -> None:
        if self._unread:
            known = sorted(set(self._values) - self._unread)
            raise InputError(
                f"{self.place}: field {self.path}{min(self._unread)}: unknown; expected only {', '.join(known)}"
            )


def _positive(value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool) and 0 < value <= 10**12


def read_fields(path: Path, place: str) -> Fields:
    """The JSON object in the file `path`, called `place` in messages.

    Raises InputError when the file cannot be read, is not one JSON object, or repeats a key.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{place}: expected UTF-8 text") from None
    return parse_fields(text, place)


def parse_fields(text: str, place: str) -> Fields:
    """The JSON object that `text` is; InputError as in `read_fields`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise InputError(f"{place}: field {key}: expected once, but it is repeated")
            seen[key] = value
        return seen

    try:
        document = json.loads(text, object_pairs_hook=unique, parse_float=Decimal, parse_constant=lambda name: name)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: line {error.lineno}: expected JSON, {error.msg}") from None
    except InputError:
        raise
    except (ValueError, ArithmeticError, RecursionError):  # digits or brackets without end
        raise InputError(f"{place}: expected JSON with numbers and nesting of reasonable size") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: expected one JSON object")
    return Fields(place, document)
