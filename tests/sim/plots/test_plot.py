"""Plots: which lines stand in which panels, and files that say what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import sim
from sim.__main__ import main
from sim.plots.chart import Point, chart
from sim.plots.plot import BOUND, NOTE, figure, style
from sim.sweeps.table import Row, read_table, write_table
from spmoe.policy.registry import RECIPES
from tests.sim.files import small_trace

PNG = b"\x89PNG\r\n\x1a\n"


def row(policy: str, cache: float, gamma: int, tpot: float, **more: object) -> Row:
    """A row with what a chart reads; `more` overrides."""
    columns: dict[str, object] = {
        "trace": "a.jsonl",
        "source": "synthetic",
        "model": "tiny",
        "hardware": "box",
        "hardware_kind": "datasheet",
        "bits": 16,
        "room": f"cache {cache}",
        "cache_share": cache,
        "gamma": gamma,
        "feasible": True,
        "policy": policy,
        "cutoff_asked": None,
        "trace_digest": "sha256:1",
        "hardware_digest": "sha256:2",
        "skipped": None,
        "cutoff": None,
        "tpot_ms": tpot,
        "bound_tpot_ms": tpot / 2,
    }
    return columns | more  # type: ignore[return-value]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a small sweep."""
    folder = tmp_path_factory.mktemp("swept")
    out = folder / "small.csv"
    policies = ["on-demand.lru", "next-gate", "spmoe.paper"]
    sim.sweep(small_trace(folder), policies, slots=[6, 9], gamma=[0, 3], cutoff="all", out=out, jobs=1)
    return out


# What is drawn


def test_a_line_per_policy_in_the_units_of_the_axes() -> None:
    rows = [row("lru", 0.5, 4, 30.0), row("lru", 0.25, 4, 40.0), row("lfu", 0.25, 4, 44.0, bound_tpot_ms=20.0)]
    drawn = chart(rows, "cache")
    (panel,) = drawn.panels
    assert drawn.policies == ("lru", "lfu")
    assert panel.lines[0].points == (Point(25, 40), Point(50, 30))
    assert panel.lines[1].points == (Point(25, 44),)
    assert panel.bound == (Point(25, 20), Point(50, 15))
    assert drawn.subtitle == "a.jsonl (synthetic), tiny at 16 bits, box (datasheet), gamma 4"
    assert (drawn.title, panel.title) == ("TPOT against cache share", "")


def test_a_panel_for_whatever_else_differs() -> None:
    rows = [
        row("lru", cache, gamma, 10.0, hardware=box, hardware_digest=box)
        for cache in (0.25, 0.5)
        for gamma in (0, 4)
        for box in ("box", "crate")
    ]
    drawn = chart(rows, "gamma")
    assert [panel.title for panel in drawn.panels] == [
        f"{box} (datasheet), slots for {cache} of experts" for cache in ("25%", "50%") for box in ("box", "crate")
    ]
    assert drawn.subtitle == "a.jsonl (synthetic), tiny at 16 bits"
    assert all(len(panel.lines) == 1 and len(panel.lines[0].points) == 2 for panel in drawn.panels)


def test_bounds_that_differ_between_policies_are_not_drawn() -> None:
    rows = [
        row(policy, cache, 4, 10.0, bound_tpot_ms=at)
        for cache in (0.25, 0.5)
        for policy, at in (("a", 4.0), ("b", 5.0))
    ]
    assert chart(rows, "cache").panels[0].bound == ()
    assert chart(rows, "cache", policies=["a"]).panels[0].bound == (Point(25, 4), Point(50, 4))


def test_against_the_cutoff_a_policy_without_one_is_level() -> None:
    rows = [row("lru", 0.5, 4, 30.0)]
    rows += [row("spmoe", 0.5, 4, 20.0 + at, cutoff=at, cutoff_asked=str(at), bound_tpot_ms=15.0) for at in (8, 0)]
    drawn = chart(rows, "cutoff")
    level, line = drawn.panels[0].lines
    assert level.level and level.points == (Point(0, 30), Point(8, 30))
    assert not line.level and line.points == (Point(0, 20), Point(8, 28))
    assert drawn.panels[0].bound == (Point(0, 15), Point(8, 15))


def test_a_policy_without_a_cutoff_stands_in_the_panels_of_all() -> None:
    rows = [row("lru", cache, 4, 30.0) for cache in (0.25, 0.5)]
    rows += [
        row("spmoe", cache, 4, 20.0, cutoff=at, cutoff_asked=asked)
        for cache in (0.25, 0.5)
        for at, asked in ((3, "best"), (8, "8"))
    ]
    drawn = chart(rows, "cache")
    assert [panel.title for panel in drawn.panels] == ["best cutoff", "cutoff 8"]
    assert all([line.policy for line in panel.lines] == ["lru", "spmoe"] for panel in drawn.panels)


def test_cells_that_were_left_out_are_no_points() -> None:
    rows = [row("lru", 0.25, 4, 30.0), row("lru", 0.5, 4, 20.0, feasible=False)]
    rows.append(row("lfu", 0.5, 4, 0.0, tpot_ms=None, skipped="needs more"))
    drawn = chart(rows, "cache")
    assert drawn.policies == ("lru",)
    assert drawn.panels[0].lines[0].points == (Point(25, 30), Point(50, 20, feasible=False))


def test_every_policy_of_the_registry_looks_different() -> None:
    looks = [style(number, len(RECIPES)) for number in range(max(30, len(RECIPES)))]
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    assert len({(look.colour, look.dash) for look in looks[:28]}) == 28


# How it looks


def test_values_far_apart_get_a_logarithmic_axis_others_start_at_zero() -> None:
    near = figure(chart([row("lru", 0.25, 4, 30.0), row("lru", 0.5, 4, 20.0)], "cache")).axes[0]
    assert near.get_yscale() == "linear" and near.get_ylim()[0] == 0
    far = figure(chart([row("lru", 0.25, 4, 300.0), row("lru", 0.5, 4, 20.0)], "cache")).axes[0]
    assert far.get_yscale() == "log" and far.get_ylabel() == "time per output token (ms), log scale"
    assert [tick.get_text() for tick in far.get_xticklabels()] == ["25", "50"]


def test_the_legend_names_every_line_outside_the_data() -> None:
    names = [f"policy-{number}" for number in range(16)]
    rows = [row(name, cache, 4, 30.0, feasible=cache < 0.5) for name in names for cache in (0.25, 0.5)]
    drawn = figure(chart(rows, "cache"))
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names, BOUND, NOTE]
    drawn.draw_without_rendering()
    right = drawn.axes[0].get_window_extent().x1
    assert legend.get_window_extent().x0 >= right
    assert legend.get_window_extent().y0 >= 0 and legend.get_window_extent().y1 <= drawn.bbox.y1


# Files


@pytest.mark.parametrize("x", ["cache", "gamma", "cutoff"])
def test_files(swept: Path, tmp_path: Path, x: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, image = tmp_path / "one.svg", tmp_path / "two.svg", tmp_path / "image.png"
    for out in (one, two, image):
        assert main(["plot", str(swept), "--x", x, "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert image.read_bytes().startswith(PNG)
    assert one.read_bytes() == two.read_bytes()
    text = one.read_text(encoding="utf-8")
    for label in (
        "on-demand.lru",
        "spmoe.paper",
        BOUND,
        "time per output token (ms)",
        "small.jsonl (synthetic)",
    ):
        assert label in text, label
    assert "rtx-4090 (datasheet)" in text and "dc:date" not in text


def test_the_default_name_stands_beside_the_results(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(swept), "--x", "cutoff", "--y", "loads_per_token", "--policy", "spmoe.paper"]) == 0
    made = swept.with_name("small-cutoff.png")
    assert made.read_bytes().startswith(PNG)
    assert capsys.readouterr().out == f"{made}\n"
    made.unlink()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--x", "colour"], ["--x", "colour", "gamma"]),
        (["--x", "gamma", "--y", "beauty"], ["beauty", "tpot_ms"]),
        (["--x", "gamma", "--y", "trace"], ["trace", "tpot_ms"]),
        (["--x", "gamma", "--policy", "spmoe.paper", "clairvoyant"], ["clairvoyant", "on-demand.lru"]),
        (["--x", "cutoff", "--policy", "next-gate"], ["several values of cutoff layer", "--cutoff"]),
        (["--x", "gamma", "--out", "plot.pdf"], ["plot.pdf", ".png or .svg"]),
        (["--x", "gamma", "--out", "nowhere/plot.png"], ["nowhere/plot.png", "cannot be written"]),
        ([], ["--x"]),
    ],
)
def test_bad_input(
    swept: Path,
    options: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(swept.parent.iterdir())
    assert main(["plot", str(swept), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert sorted(swept.parent.iterdir()) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "a,b\n1\n", 'a,b\n"1\n', "\udcff"])
def test_what_is_no_table_of_a_sweep(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["plot", str(path), "--x", "gamma"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "other.csv: " in said and "Traceback" not in said


def test_without_matplotlib(swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", str(swept), "--x", "gamma"]) == 2
    assert capsys.readouterr().err == "error: plots need matplotlib: pip install 'spmoe[plot]'\n"


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows: list[Row] = [
        {
            "trace": "1e5",
            "bits": 4.25,
            "tokens": 7,
            "rate": 0.1 + 0.2,
            "lossless": True,
            "skipped": 'a, "b"',
            "tpot_ms": None,
        },
        {"trace": "7", "bits": 16, "tokens": -3, "rate": 1e-300, "lossless": False, "skipped": None, "tpot_ms": 2.0},
    ]
    for name in ("table.csv", "table.parquet"):
        write_table(tmp_path / name, rows)
        assert read_table(tmp_path / name) == rows
