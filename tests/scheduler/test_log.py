"""Decision logs: what was decided can be verified, and what was tampered with is refused in one line."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.policy.registry import RECIPES, recipe
from spmoe.scheduler.log import LogWriter, Verified, verify_log
from tests.conformance.cases import Case, make_trace
from tests.conformance.drivers import Recording, simulate, with_room
from tests.paths import DOCS

CASE = Case(make_trace(5, 3, 5, 2, [7, 4]), slots=6, gamma=3, cutoff=2, bandwidth=10**10)


def log_of(recording: Recording) -> str:
    stream = io.StringIO()
    writer = LogWriter(stream, recording.config)
    for event, commands in recording.entries:
        writer.observe(event, commands)
    writer.close()
    return stream.getvalue()


PAPER = log_of(simulate(recipe("spmoe.paper"), CASE))
LINES = PAPER.splitlines(keepends=True)


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[str | bytes], Verified]:
    path = tmp_path / "a.log"

    def run(text: str | bytes) -> Verified:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return verify_log(path)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{path}:") and "\n" not in message
            raise

    return run


def first(kind: str, since: int = 0) -> int:
    """The index of the first line with a command or event of that name."""
    return next(n for n, line in enumerate(LINES) if n >= since and f'":"{kind}"' in line)


def changed(at: int, **fields: Any) -> str:
    entry = json.loads(LINES[at])
    for name, value in fields.items():
        (entry["loads"][0] if name in ("slot", "key", "evicted") else entry)[name] = value
    return "".join([*LINES[:at], json.dumps(entry, separators=(",", ":")) + "\n", *LINES[at + 1 :]])


@pytest.mark.parametrize("name", RECIPES)
def test_a_log_holds_and_two_runs_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    recording = simulate(recipe(name), with_room(recipe(name), CASE))
    text = log_of(recording)
    assert log_of(simulate(recipe(name), with_room(recipe(name), CASE))) == text
    path = tmp_path / "a.log"
    path.write_text(text)
    commands = sum(len(commands) for _, commands in recording.entries)
    events = len(recording.entries)
    future = recording.future
    verified = verify_log(path, None if future is None else lambda config: future)
    assert verified == Verified(name, events, events + commands)
    if "future" in recipe(name).needs:
        with pytest.raises(InputError, match=r"a\.log:1: a clairvoyant policy needs the future"):
            verify_log(path)


def test_the_example_in_the_contract_holds(tmp_path: Path) -> None:
    page = (DOCS / "contract.md").read_text(encoding="utf-8")
    path = tmp_path / "a.log"
    path.write_text(page.partition("```json\n")[2].partition("```")[0])
    assert verify_log(path).recipe == "spmoe.paper"


def test_keys_are_written_as_pairs_and_the_last_line_counts() -> None:
    submit = json.loads(LINES[first("Submit")])
    assert all(len(load["key"]) == 2 and load["slot"] >= 0 for load in submit["loads"])
    assert json.loads(LINES[-1]) == {"end": len(LINES) - 2}


@pytest.mark.parametrize("kept", [1, 2, len(LINES) // 2, len(LINES) - 1])
def test_a_log_cut_off_is_refused(verify: Callable[[str], Verified], kept: int) -> None:
    with pytest.raises(InputError, match=r"a\.log: expected an end line; the log was cut off after"):
        verify("".join(LINES[:kept]))


def test_a_line_cut_off_is_refused(verify: Callable[[str], Verified]) -> None:
    with pytest.raises(InputError, match=f"a.log:{len(LINES) // 2 + 1}: "):
        verify("".join(LINES[: len(LINES) // 2]) + LINES[len(LINES) // 2][:9])


def test_other_commands_are_refused(verify: Callable[[str], Verified]) -> None:
    at = first("Submit")
    for fields in ({"slot": 5}, {"key": [2, 4]}, {"evicted": [0, 0]}, {"purpose": "demand"}, {"batch": 9}):
        with pytest.raises(InputError, match=rf"a\.log:{at + 1}: a fresh scheduler says .*, the log "):
            verify(changed(at, **fields))


def test_a_missing_command_is_refused(verify: Callable[[str], Verified]) -> None:
    at = first("Submit")
    with pytest.raises(InputError, match=r"a\.log:\d+: "):
        verify("".join([*LINES[:at], *LINES[at + 1 :]]))
    last = max(n for n, line in enumerate(LINES) if '"command"' in line)
    with pytest.raises(InputError, match=r"a\.log:\d+: "):
        verify("".join([*LINES[: last - 1], LINES[last - 1], '{"end":' + str(last - 1) + "}\n"]))


def test_a_command_too_many_is_refused(verify: Callable[[str], Verified]) -> None:
    at = first("Submit")
    with pytest.raises(InputError, match=r"a\.log:\d+: a fresh scheduler says .*, the log"):
        verify("".join([*LINES[: at + 1], LINES[at], *LINES[at + 1 :]]))


def test_lines_after_the_end_and_wrong_counts_are_refused(verify: Callable[[str], Verified]) -> None:
    with pytest.raises(InputError, match="expected nothing after the end line"):
        verify(PAPER + LINES[-1])
    with pytest.raises(InputError, match=f"field end: expected {len(LINES) - 2}, the lines there are, got 3"):
        verify("".join(LINES[:-1]) + '{"end":3}\n')


def test_an_illegal_order_is_refused(verify: Callable[[str], Verified]) -> None:
    at = first("StepBegun")
    with pytest.raises(InputError, match=rf"a\.log:{at + 1}: not allowed"):
        verify(changed(at, event="PrefillEnded").replace(',"limit":3}', "}", 1))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "\n",
        "[]\n",
        "{}\n",
        "no json\n",
        LINES[0].replace('"version":1', '"version":2'),
        LINES[0].replace("spmoe-log", "spmoe-trace"),
        LINES[0].replace('"slots":6', '"slots":0'),
        LINES[0].replace('"slots":6', '"slots":"6"'),
        LINES[0].replace('"transfer_ns":800000', '"transfer_ns":0'),
        LINES[0].replace('"load_bytes":8000000', '"load_bytes":0'),
        LINES[0].replace('"slots":6', '"rooms":6'),
        LINES[0].replace("spmoe.paper", "spmoe.future"),
        LINES[0].replace('"pace":{', '"pace":{"x":1,'),
        LINES[0].replace('"scheduler":{', '"scheduler":[{').replace("}}\n", "}}]}\n"),
    ],
)
def test_a_foreign_header_is_refused(verify: Callable[[str], Verified], header: str) -> None:
    with pytest.raises(InputError, match=r"a\.log:1: "):
        verify(header + "".join(LINES[1:]) if header else "")


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00", b"\x80" * 9, b"[" * 100_000, b"null\n", b'{"event":3}\n'])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_garbage_is_refused(verify: Callable[[bytes], Verified], garbage: bytes, after: int) -> None:
    with pytest.raises(InputError):
        verify("".join(LINES[:after]).encode() + garbage)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("LayerReached", {"experts": [99], "tokens": [1]}),
        ("LayerReached", {"experts": ["a"], "tokens": [1]}),
        ("DraftPredicted", {"forecasts": [[[99, 5]], [[99, 5]]]}),
        ("BatchArrived", {"batch": [0]}),
        ("StepBegun", {"limit": None}),
        ("StepBegun", {"gamma": 3}),
    ],
)
def test_impossible_values_are_refused(verify: Callable[[str], Verified], event: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"a\.log:\d+: "):
        verify(changed(first(event), **fields))


def test_a_batch_that_fails_twice_is_refused(verify: Callable[[str], Verified]) -> None:
    at = first("Submit")
    after = next(n for n in range(at + 1, len(LINES)) if '{"event"' in LINES[n])
    failed = json.dumps({"event": "BatchFailed", "time": json.loads(LINES[after])["time"], "batch": 0}) + "\n"
    again = LINES[at].replace('"attempt":1', '"attempt":2')
    with pytest.raises(InputError, match=rf"a\.log:{after + 3}: batch 0 failed twice"):
        verify("".join([*LINES[:after], failed, again, failed, *LINES[after:]]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.log: cannot be read"):
        verify_log(tmp_path / "none.log")
    with pytest.raises(InputError, match="cannot be read"):
        verify_log(tmp_path)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(LINES) - 1), seed=st.integers(0, 2**16))
def test_whatever_is_wrong_with_a_line_is_one_line_of_input_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, seed: int
) -> None:
    """One value of one line becomes another: the log is refused, or (where nothing depends on it) still holds."""
    rng = random.Random(seed)
    entry = json.loads(LINES[at])
    spots = list(values_in(entry))
    container, key = rng.choice(spots)
    container[key] = rng.choice([-1, 0, 3, 99, None, True, "x", [], {}, [1], 1.5, [[0, 1]]])
    path = tmp_path_factory.getbasetemp() / "changed.log"
    path.write_text("".join([*LINES[:at], json.dumps(entry, separators=(",", ":")) + "\n", *LINES[at + 1 :]]))
    try:
        verify_log(path)
    except InputError as error:
        assert "\n" not in str(error) and "changed.log" in str(error)


def values_in(value: Any) -> Any:
    """Every place in a JSON value, as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from values_in(inner)
