"""What a run came to: every line of the summary, and the document."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.random_pair import write_random_pair
from engine.cli.document import document
from engine.cli.summary import show, summary
from engine.cli.trace_output import trace_of
from engine.engine import Engine
from engine.options import Options
from engine.plan import Plan, make_plan
from spmoe.policy.registry import RECIPES
from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.results.transfers import TransferFold, Transfers

NOTHING_YET = MetricsFold(8).result()
NOTHING_MOVED = TransferFold(1).result()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


def plan_of(pair: tuple[Path, Path], **options: Any) -> Plan:
    return make_plan(*pair, Options(device="cpu", **options))


def lines(plan: Plan, metrics: Metrics, transfers: Transfers) -> dict[str, str]:
    return dict(summary(plan, plan.sampling, metrics, transfers))


def test_every_number_with_its_unit(pair: tuple[Path, Path]) -> None:
    metrics = dataclasses.replace(
        NOTHING_YET,
        requests=2,
        prefills=2,
        prefill_ns=30_000_000,
        steps=40,
        tokens=100,
        decode_ns=2_000_000_000,
        stall_ns=500_000_000,
        link_busy_ns=1_000_000_000,
        hits=1500,
        late=300,
        misses=200,
        host_computed=150,
        loads=250,
    )
    transfers = Transfers(
        loads=300, expert_bytes=12288, busy_ns=1_500_000, stalled_ns=375_000, drafted=160, accepted=60
    )
    said = lines(plan_of(pair), metrics, transfers)
    assert said == {
        "tokens": "greedy",
        "policy": f"spmoe.foresight: {RECIPES['spmoe.foresight'].summary}",
        "model": "random-target, draft random-draft, float32 on cpu",
        "cache": "slots for 16 of 32 experts (50%, 192.0 KiB)",
        "times": "measured; the policy reckons with the figures of rtx-4090 (datasheet)",
        "output": "102 tokens for 2 prompts",
        "rounds": "40, each of 2.50 tokens; of 160 drafted tokens 37.5% were accepted",
        "TTFT": "15.0 ms to the first token (mean)",
        "TPOT": "20.00 ms per further token (50.0 tokens/s)",
        "experts": "2,000 needed in decode: 75.0% hits, 15.0% late, 10.0% misses",
        "": "150 of them computed on the CPU",
        "moved": "3.5 MiB to the slots at 2.46 GB/s, 75.0% of it hidden behind compute",
        "decode": "2.50 loads per token; of the time the link works 50.0%, the verifier stalls 25.0%",
    }


def test_nothing_is_said_of_what_was_not(pair: tuple[Path, Path]) -> None:
    one = dataclasses.replace(NOTHING_YET, requests=1, prefills=1, prefill_ns=5_000_000)
    said = lines(make_plan(pair[0], None, Options(device="cpu")), one, NOTHING_MOVED)
    assert said["output"] == "1 token" and said["TTFT"] == "5.0 ms to the first token"
    assert said["TPOT"] == "-" and said["moved"] == "nothing"
    assert said["model"] == "random-target, no draft, float32 on cpu"
    assert not {"rounds", "experts", "decode", ""} & said.keys()


def test_in_virtual_time_no_number_passes_for_a_measured_one(pair: tuple[Path, Path]) -> None:
    said = lines(plan_of(pair, virtual_time="rtx-3090"), NOTHING_YET, NOTHING_MOVED)
    assert said["times"] == "virtual: the cost model's for rtx-3090 (datasheet); nothing was measured"


def test_where_the_original_runs_otherwise_the_summary_says_so(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, policy="mixtral-offloading.released.spec")
    assert lines(plan, NOTHING_YET, NOTHING_MOVED)[""].startswith("the original differs in how it runs: ")


def test_labels_stand_in_a_column() -> None:
    assert show(iter([("TPOT", "1"), ("", "2"), ("experts", "3")])) == "TPOT    1\n        2\nexperts 3"


@pytest.mark.parametrize("record", [False, True])
def test_the_document_is_one_of_the_simulators_kind(pair: tuple[Path, Path], record: bool) -> None:
    plan = plan_of(pair, virtual_time="rtx-4090", gamma=3)
    with Engine(plan, record=record) as engine:
        engine.generate("A prompt", 12, ignore_eos=True)
        found = json.loads(json.dumps(document(engine, engine.plan.sampling).to_json(), allow_nan=False))
        tokens, drafted = engine.metrics().tokens, engine.transfers()
        if record:
            assert trace_of(engine).header.tokens == tokens
        else:
            with pytest.raises(RuntimeError, match="took no notes"):
                trace_of(engine)
    assert list(found) == ["schema", "trace", "config", "feasible", "bound", "results"]
    assert found["schema"] == "spmoe-result/1" and found["trace"]["tokens"] == tokens == 11
    assert found["config"]["engine"]["acceptance"] == drafted.acceptance
    assert found["config"]["gamma"] == 3 and found["config"]["engine"]["virtual_time"] is True
    (result,) = found["results"]
    assert (result["policy"], result["tokens"]) == ("spmoe.foresight", tokens)
    assert (found["bound"] is not None) is record and (result["vs_bound"] is not None) is record
    if record:
        assert result["vs_bound"] == pytest.approx(result["tpot_ms"] / found["bound"]["tpot_ms"])


def test_a_measured_time_is_compared_with_no_model_of_another_machine(pair: tuple[Path, Path]) -> None:
    with Engine(plan_of(pair), record=True) as engine:
        engine.generate("A prompt", 6, ignore_eos=True)
        found = document(engine, engine.plan.sampling).to_json()
    assert found["bound"]["loads_per_token"] > 0 and found["bound"]["tpot_ms"] is None
    assert found["results"][0]["vs_bound"] is None and found["results"][0]["speedup_vs_on_demand"] is None


def test_lengths_that_were_chosen(pair: tuple[Path, Path]) -> None:
    plan = plan_of(pair, policy="spmoe.foresight", gamma_max=5, virtual_time="rtx-4090", cpu_experts=False)
    with Engine(plan, record=True) as engine:
        engine.generate((1, 5, 9), 20, ignore_eos=True)
        engine.finish()
        found, said = (
            document(engine, engine.plan.sampling).to_json(),
            show(summary(plan, plan.sampling, engine.metrics(), engine.transfers())),
        )
        mean = sum(engine.lengths()) / len(engine.lengths())
        assert engine.transfers().drafted == sum(engine.lengths())
    assert found["results"][0]["drafted_per_step"] == mean
    assert found["config"]["gamma_max"] == 5
    assert found["results"][0]["vs_bound"] >= 1  # Of its own windows, and it only fetches.
    assert f"the policy chose how much to draft: {mean:.1f} tokens per round, at most 5" in said
