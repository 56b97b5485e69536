"""Studies of forecasts: lead times that can be followed on paper, how they relate, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.__main__ import main
from sim.studies.forecasts import REPLAYED, ForecastStudy
from spmoe.errors import InputError
from spmoe.trace.schema import ONE, ForecastOrigin, TokenLine, TraceInMemory
from tests.golden.runs import golden_trace
from tests.paths import DOCS
from tests.sim.files import small_trace, write
from tests.sim.paper import BITS, machine, token, tokens, trace


def paper(lines: TraceInMemory, gamma: int, slots: int = 4, **times: int) -> ForecastStudy:
    machinery = machine(lines.header.model.layers, **times)
    return sim.forecasts(lines, hardware=machinery, bits=BITS, slots=slots, gamma=gamma)


# On paper: attention and router take 100 ns, an expert 50, a load 200


def test_the_lead_of_a_draft() -> None:
    forecast = ((0,), (0,))
    study = paper(trace([token(at, (0,), (0,), draft=forecast) for at in range(3)], 2, 2), gamma=2, draft_ns=400)
    # Forecasts for both layers at 400 and 800.  Layer 0 is reached at 900, layer 1 at 1050; what they need is there.
    first, second = study.rows("draft")
    assert first["lead_ms"] == pytest.approx((500 + 100) / 2 / 1e6)
    assert first["last_lead_ms"] == pytest.approx(100e-6)
    assert first["lead_loads"] == pytest.approx(1.5)
    assert second["lead_ms"] == second["busy_lead_ms"] == pytest.approx((650 + 250) / 2 / 1e6)
    assert second["last_lead_loads"] == pytest.approx(1.25)
    assert study.timings["draft"].by_token_ms("draft", 1) == pytest.approx([650e-6, 250e-6])
    # All is right, and two of the three tokens of the only window are forecast.
    assert all(first[name] == 1 for name in ("coverage", "top1_used", "recall", "window_top1"))
    assert list(study.notes()) == [
        "no lead time of next_gate: spmoe.next-gate got no such forecasts",
        "no popularity: it is that of the other requests, and the trace has only one",
    ]


def test_the_lead_of_the_next_layers_gate() -> None:
    study = paper(trace([token(0, (0,), (1,), next_gate=((), (1,)))], 2, 2), gamma=0)
    # Layer 0 is reached at 100 and waits until 300 for its expert, which computes until 350; layer 1 is reached at 450.
    first, second = study.rows("next_gate")
    assert first["lead_ms"] is None and first["top1_used"] is None
    assert second["lead_ms"] == second["last_lead_ms"] == pytest.approx(350e-6)
    assert second["busy_lead_ms"] == pytest.approx(150e-6)
    assert second["busy_lead_loads"] == pytest.approx(0.75)
    assert second["window_top1"] is None
    assert study.summary("next_gate")["lead_loads"] == pytest.approx(1.75)
    assert next(study.notes()).startswith("gamma 0: nothing is drafted")


def test_a_model_of_one_layer_is_its_own_mean() -> None:
    lines = [each._replace(forecasts={"draft": (((0, ONE),),)}) for each in tokens(0, 1, 0)]
    study = paper(trace(lines, 1, 2), gamma=2, slots=2)
    assert study.summary("draft")["top1_used"] == study.rows("draft")[0]["top1_used"] == 2 / 3


# Relations


@pytest.fixture(scope="module")
def golden() -> ForecastStudy:
    return sim.forecasts(golden_trace(), slots=30, gamma=4)


def rises(values: Sequence[Any]) -> bool:
    return all(before < after for before, after in pairwise(values))


def test_the_draft_comes_the_earlier_the_deeper_the_layer_and_the_sooner_the_token(golden: ForecastStudy) -> None:
    rows = golden.rows("draft")
    for name in ("lead_ms", "last_lead_ms", "busy_lead_ms"):
        assert rises([row[name] for row in rows])
    for layer, row in enumerate(rows):
        by_token = golden.timings["draft"].by_token_ms("draft", layer)
        assert len(by_token) == 4 and rises(by_token[::-1])
        assert row["busy_lead_ms"] <= row["lead_ms"] and row["last_lead_ms"] < row["lead_ms"]


def test_the_gate_comes_a_layer_before(golden: ForecastStudy) -> None:
    layer_ns = golden.timings["next_gate"].config.pace.layer_ns
    for gate, draft in zip(golden.rows("next_gate")[1:], golden.rows("draft")[1:], strict=True):
        assert gate["last_lead_ms"] == gate["lead_ms"]
        assert 0 < gate["busy_lead_ms"] < 2 * layer_ns / 1e6
        assert gate["busy_lead_ms"] < draft["busy_lead_ms"]


def test_the_means_leave_layer_0_out(golden: ForecastStudy) -> None:
    table = golden.table()
    for source in ("draft", "next_gate", "popularity", "token_before"):
        assert golden.summary(source)["recall"] == pytest.approx(table.loc[source]["recall"][1:].mean())


@pytest.mark.parametrize("source", REPLAYED)
def test_the_log_of_a_replay_has_the_same_lead_times(source: str, golden: ForecastStudy, tmp_path: Path) -> None:
    log, name = tmp_path / "run.log", REPLAYED[source]
    cutoff = 6 if source == "draft" else None
    sim.replay(golden_trace(), name, slots=30, gamma=4, cutoff=cutoff, log=log)
    study = sim.forecasts(golden_trace(), log=log)
    assert study.timings[source].times == golden.timings[source].times
    assert study.accuracy == golden.accuracy and study.setting is None
    other = next(iter(REPLAYED.keys() - {source}))
    assert f"no lead time of {other}: {name} got no such forecasts" in study.notes()


def test_the_log_of_a_run_without_speculation(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    sim.replay(golden_trace(), "mixtral-offloading.paper", slots=30, gamma=4, log=log)
    study = sim.forecasts(golden_trace(), log=log)
    assert study.accuracy.gamma == 0 and study.rows("next_gate")[1]["lead_ms"] is not None


def test_a_clairvoyant_run_is_told_the_trace(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    sim.replay(golden_trace(), "clairvoyant", slots=30, gamma=4, log=log)
    assert "no lead time of draft: clairvoyant got no such forecasts" in sim.forecasts(golden_trace(), log=log).notes()


def test_where_every_expert_is_there_the_draft_is_not_asked(golden: ForecastStudy) -> None:
    assert not any("every expert" in note for note in golden.notes())
    # Prompts bring all 48 experts in before the first step.
    whole = sim.forecasts(golden_trace(), slots=48, gamma=4)
    said = "no lead time of the draft: spmoe.paper asks for no forecasts where every expert is there; with a smaller"
    assert any(note.startswith(said) for note in whole.notes())
    assert whole.rows("draft")[1]["lead_ms"] is None and whole.rows("draft")[1]["recall"] is not None
    lines = [line for line in golden_trace() if isinstance(line, TokenLine)]
    cold = sim.forecasts(TraceInMemory(golden_trace().header, lines), slots=48, gamma=4)
    times = cold.timings["draft"].times
    assert 0 < times.asked < times.steps and cold.rows("draft")[1]["lead_ms"] is not None
    assert (
        f"lead times of the draft are from {times.asked} of {times.steps} steps: in the others every expert was there, "
        "and spmoe.paper asked for no forecasts"
    ) in cold.notes()


# The command


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    assert main(["forecasts", *map(str, words)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, write(golden_trace(), tmp_path / "golden.jsonl"), "--slots", "30")
    assert err == "" and max(map(len, out.splitlines()[6:12])) <= 132
    assert "draft: drawn at an accuracy of 85.0%; how good it is was put in, not found out" in out
    assert "lead times of draft: a replay of spmoe.paper with a cutoff at 6 of 6 layers; a load takes" in out
    # Draft and gate side by side, then the two that need neither.
    assert len([line for line in out.splitlines() if re.match(r"layer .* layer ", line)]) == 2
    assert len([line for line in out.splitlines() if re.match(r" *mean .* mean ", line)]) == 2
    assert "calibration error" in out


def test_recorded_forecasts_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = golden_trace()
    header = replace(made.header, forecasts={"draft": ForecastOrigin("recorded"), "next_gate": ForecastOrigin("drawn")})
    out, _ = run(capsys, write(TraceInMemory(header, made.lines), tmp_path / "r.jsonl"), "--slots", "30")
    assert "draft: recorded\nnext_gate: drawn; how good it is was put in, not found out\n" in out


def test_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(golden_trace(), tmp_path / "golden.jsonl")
    out, err = run(capsys, path, "--slots", "30", "--json", "-")
    assert "calibration error" in err
    assert out == run(capsys, path, "--slots", "30", "--json", "-")[0]
    document = json.loads(out)
    assert document["schema"] == "spmoe-forecasts/1" and document["config"]["slots"] == 30
    draft = document["sources"]["draft"]
    assert draft["origin"] == {"kind": "drawn", "accuracy": 0.85}
    assert draft["lead"] | {"load_ms": 0} == {
        "from": "replay",
        "policy": "spmoe.paper",
        "cutoff": 6,
        "steps": document["windows"],
        "asked": document["windows"],
        "load_ms": 0,
    }
    assert len(draft["layers"]) == 6 and len(draft["layers"][3]["by_token_ms"]) == 4
    assert all(each["cells"] and each["first"] <= each["used"] <= 1 for each in draft["reliability"]["bins"])
    assert "lead" not in document["sources"]["popularity"]


def test_the_page_of_formats_names_every_field() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(\w+)`", text[text.index("`spmoe-forecasts/1`") : text.index("\n## Timelines")]))
    document = sim.forecasts(golden_trace(), slots=30).to_json()
    draft = document["sources"]["draft"]
    bins = draft["reliability"]["bins"]
    for part in (document, draft, draft["lead"], draft["layers"][0], draft["reliability"], bins[0]):
        assert part.keys() - {"schema"} <= said


# Bad input


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_trace(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["forecasts", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


def test_a_trace_without_forecasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = golden_trace()
    bare = TraceInMemory(
        replace(made.header, forecasts={}),
        [line._replace(forecasts={}, rejected=()) if isinstance(line, TokenLine) else line for line in made.lines],
    )
    path = write(bare, tmp_path / "bare.jsonl")
    said = refused(capsys, path, "--json", tmp_path / "never.json")
    assert f"{path}: field forecasts: expected draft or next_gate forecasts, and the trace has none" in said
    assert not (tmp_path / "never.json").exists()
    with pytest.raises(InputError, match="no line with a routing has any"):
        sim.forecasts(TraceInMemory(made.header, bare.lines))


def test_a_log_has_its_own_setting(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = small.with_name("run.log")
    sim.replay(small, "spmoe.paper", slots=9, log=log)
    for option, value in (("--gamma", "4"), ("--bits", "16"), ("--hardware", "h200"), ("--cache", "0.5")):
        said = refused(capsys, small, "--log", log, option, value)
        assert said == f"error: {option[2:]}: not allowed with a log, which has its machine, cache and gamma\n"
    assert "a file of its own" in refused(capsys, small, "--log", small)


def test_logs_that_do_not_fit(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = small.with_name("run.log")
    assert f"{log}: cannot be read" in refused(capsys, small, "--log", log)
    sim.replay(small, "spmoe.paper", slots=9, log=log)
    other = write(golden_trace(), tmp_path / "golden.jsonl")
    assert (
        f"{log}:1: expected a run of the trace's model, 6 layers of 8 experts, top-2, got 3 layers of 6, top-2"
        in refused(capsys, other, "--log", log)
    )
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    assert f"{log}: expected an end line; the log was cut off" in refused(capsys, small, "--log", log)
    log.write_text("".join(lines[:7]) + "{\n")
    assert f"{log}:8: " in refused(capsys, small, "--log", log)


def test_options_as_elsewhere(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "slots: expected 1 to 18" in refused(capsys, small, "--slots", "99")
    assert "gamma: expected a number of drafted tokens" in refused(capsys, small, "--gamma", "-1")
    assert "expected a file, got -" in refused(capsys, small, "--log", "-")
