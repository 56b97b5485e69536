"""Profiles: the ones that come with the project, and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from spmoe.errors import InputError
from spmoe.machine.hardware import Hardware, hardware_names, load_hardware
from tests.paths import PROFILES

RTX_4090 = json.loads((PROFILES / "rtx-4090.json").read_text())


def write(path: Path, **changes: Any) -> Path:
    """The rtx-4090 profile with fields replaced; the key link__latency_us is the field link.latency_us."""
    document = copy.deepcopy(RTX_4090)
    for field, value in changes.items():
        section, _, name = field.rpartition("__")
        (document[section] if section else document)[name] = value
    path.write_text(json.dumps(document))
    return path


def test_the_profiles_that_come_with_the_project() -> None:
    assert {"rtx-3090", "rtx-4090", "a100-40gb", "h200"} <= set(hardware_names())
    for name in hardware_names():
        hardware = load_hardware(name)
        assert isinstance(hardware, Hardware)
        assert hardware.name == name
        assert hardware.source


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.json")), ids=lambda path: path.stem)
def test_every_data_sheet_number_says_where_it_is_from(path: Path) -> None:
    document = json.loads(path.read_text())
    if document["kind"] == "measured":
        pytest.skip("measured: the command in its source says it all")
    shared = {"draft.layers", "draft.bits", "cpu.cores"}  # facts about the draft model and the CPU named beside them
    numbers = {
        f"{section}.{name}"
        for section in ("link", "gpu", "draft", "cpu")
        for name, value in (document[section] or {}).items()
        if not isinstance(value, str)
    }
    assert numbers - shared == set(document["notes"])


def test_units() -> None:
    hardware = load_hardware("rtx-4090")
    assert hardware.link.bandwidth == 24 * 10**9
    assert hardware.link.latency_ns == 12_000
    assert hardware.gpu.memory_bytes == 24 * 1024**3
    assert hardware.gpu.bandwidth == 806_400_000_000  # 0.8 of 1,008 GB/s
    assert hardware.gpu.flops == 165_200_000_000_000
    assert hardware.draft.token_ns == 8_000_000
    assert hardware.cpu is not None and hardware.cpu.cores == 24


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", name="mine", kind="measured", cpu=None, link__latency_us=0.1)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "notes"}))
    hardware = load_hardware(str(path))
    assert (hardware.name, hardware.kind, hardware.cpu, hardware.link.latency_ns) == ("mine", "measured", None, 100)
    assert load_hardware(path) == hardware


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^hardware 'rtx-5090' is unknown; expected one of a100-40gb, .*profile file"):
        load_hardware("rtx-5090")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "guessed"}, 'field kind: expected one of measured, datasheet, got "guessed"'),
        ({"source": ""}, 'field source: expected a text, got ""'),
        ({"link": 24}, "field link: expected an object, got 24"),
        ({"gpu": None}, "field gpu: expected an object, got null"),
        ({"colour": "green"}, "field colour: unknown; expected only "),
        ({"link__lanes": 16}, r"field link\.lanes: unknown; expected only bandwidth_gb_per_s, "),
        ({"link__latency_us": 0}, r"field link\.latency_us: expected a number above 0 .*, got 0"),
        ({"link__latency_us": -1.5}, r"field link\.latency_us: expected a number above 0 .*, got -1\.5"),
        ({"link__bandwidth_gb_per_s": "24"}, r'field link\.bandwidth_gb_per_s: expected a number above 0 .*, got "24"'),
        ({"link__bandwidth_gb_per_s": True}, r"field link\.bandwidth_gb_per_s: expected a number above 0 .*, got true"),
        ({"gpu__tflops": float("nan")}, r'field gpu\.tflops: expected a number above 0 .*, got "NaN"'),
        ({"gpu__tflops": float("inf")}, r'field gpu\.tflops: expected a number above 0 .*, got "Infinity"'),
        ({"gpu__tflops": 1e300}, r"field gpu\.tflops: expected a number above 0 \(and at most 10\^12\), got 1E\+300"),
        ({"draft__params": 7.5}, r"field draft\.params: expected a whole number above 0, got 7\.5"),
        ({"draft__bits": 5}, r"field draft\.bits: expected 64, 32, 16, 8 or 4\.25, got '5'"),
        ({"cpu__cores": 0}, r"field cpu\.cores: expected a whole number above 0, got 0"),
        ({"notes": {"gpu.colour": "green"}}, r"field notes\.gpu\.colour: expected the path of a field"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_hardware(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected JSON"),
        ("[1, 2]", "expected one JSON object"),
        ('{"name": "a",\n"name": "b"}', "field name: expected once, but it is repeated"),
        ('{"name": "a",\n}', "line 2: expected JSON"),
        ('{"kind": "measured"}', "field name: expected a text, but it is missing"),
        ("[" * 100_000, "expected JSON"),
        ('{"a": 1e99999999999999999999}', "expected JSON"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_hardware(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.json: cannot be read: No such file"):
        load_hardware(tmp_path / "missing.json")
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(InputError, match=r"latin\.json: expected UTF-8 text"):
        load_hardware(tmp_path / "latin.json")
