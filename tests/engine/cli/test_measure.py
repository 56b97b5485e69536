"""`engine profile` and `measure` as a user has them: what they write can be read, and bad input gets one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

from engine.__main__ import main  # noqa: E402
from engine.profiling.policy_timing import choose  # noqa: E402
from engine.profiling.random_models import BlankPair  # noqa: E402
from sim.__main__ import main as sim_main  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from spmoe.machine.geometry import draft_model, geometry  # noqa: E402
from spmoe.machine.hardware import load_hardware  # noqa: E402
from spmoe.machine.measured import cost_model  # noqa: E402
from spmoe.policy.parts.runtime import NATIVE  # noqa: E402
from spmoe.policy.registry import RECIPES, recipe  # noqa: E402
from spmoe.results.run import log_path, read_run  # noqa: E402
from spmoe.run.options import RunOptions  # noqa: E402
from spmoe.run.setting import resolve_setting  # noqa: E402
from spmoe.scheduler.log import read_config, verify_log  # noqa: E402
from spmoe.trace.excerpt import excerpt  # noqa: E402
from spmoe.trace.reader import TraceFile  # noqa: E402
from tests.paths import TRACES  # noqa: E402

pytestmark = pytest.mark.xdist_group("measured")  # One process: the measurement that most tests read is taken once.

Out = pytest.CaptureFixture[str]

TRACE = TRACES / "pico.jsonl"
POLICIES = ("on-demand.lru", "spmoe.per-layer", "llamacpp.cpu-moe")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run file and its logs."""
    folder = tmp_path_factory.mktemp("measured")
    arguments = ["--tokens", "8", "--repeats", "2", "--link-gbps", "2", "--slots", "24", "--gamma", "3"]
    files = ["--out", str(folder / "run.json"), "--logs", str(folder / "logs")]
    assert main(["measure", str(TRACE), "--device", "cpu", *arguments, *files, "--policy", *POLICIES]) == 0
    return folder


def test_a_run_file_tells_all_that_a_simulation_needs(measured: Path) -> None:
    run = read_run(measured / "run.json")
    assert [each.policy for each in run.policies] == list(POLICIES)
    assert all(len(each.tpots_ms) == 2 and each.tpot_ms > 0 for each in run.policies)
    assert (run.trace.name, run.trace.tokens, run.slots, run.gamma) == (TRACE.name, 8, 24, 3)
    assert (run.model.name, run.draft.name, run.bits, run.link_gbps) == ("pico-target", "pico-draft", 32, 2)
    assert run.policies[2].loads == 0 < run.policies[0].loads
    timings = run.hardware.timings
    assert timings is not None and timings.fit("pico-target", "pico-draft", 32)
    assert set(POLICIES) <= set(timings.decisions)
    assert "copies slowed down to 2 GB/s" in run.hardware.source


def test_the_simulator_reads_it(measured: Path, capsys: Out) -> None:
    """Loads come out the same: both make the same decisions, give or take what time makes of them."""
    timeline = measured / "timeline.json"
    options = ["--trace", str(TRACE), "--timeline", str(timeline), "--logs", str(measured / "logs"), "--json", "-"]
    assert sim_main(["fidelity", str(measured / "run.json"), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {each["policy"] for each in document["policies"]} == set(POLICIES)
    names = [each["args"]["name"] for each in json.loads(timeline.read_text())["traceEvents"] if each["ph"] == "M"]
    for policy in POLICIES:
        assert {f"{policy}, measured", f"{policy}, predicted"} <= set(names)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_log_holds(measured: Path, policy: str) -> None:
    path = log_path(measured / "logs", policy)
    assert verify_log(path).recipe == policy
    (config,) = [each.config for each in read_run(measured / "run.json").policies if each.policy == policy]
    assert read_config(path) == config


def test_a_profile_is_one_of_the_simulators(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "mine.json"
    assert main(["profile", "--out", str(out), "--device", "cpu", "--turns", "1", "--link-gbps", "1.5"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if not line.startswith(" ")] == [
        "profile",
        "link",
        "layer",
        "expert",
        "draft",
        "arrival",
        "policy",
    ]
    hardware = load_hardware(out)
    assert (hardware.name, hardware.kind) == ("mine", "measured")
    timings = hardware.timings
    assert timings is not None
    natives = {name for name, one in RECIPES.items() if one.lossless and one.runtime == NATIVE}
    assert set(timings.decisions) == natives
    assert timings.draft_token is not None and timings.host_expert is not None
    assert {1, 5} <= {count for count, _ in timings.layer.points}
    header = TraceFile(TRACE).header
    assert resolve_setting(header, 99, RunOptions(hardware=hardware, bits=32, cache=0.5)).cost.blind
    # For other models its figures count.
    mixtral = cost_model(geometry("mixtral-8x7b"), hardware, 16, draft_model("mistral-7b"))
    assert not mixtral.blind and mixtral.layer_ns(5, 100) > 0
    document = json.loads(out.read_text())
    assert "copies slowed down to 1.5 GB/s" in document["source"]
    transfers = document["measured"]["link"]["transfers"]
    assert all(each["readings"] > 1 and "off_the_line" in each and "beside_compute" in each for each in transfers)
    assert document["measured"]["host_expert_alone_by_threads"][0]["threads"] == 1
    assert sim_main(["replay", str(TRACE), "--hardware", str(out), "--bits", "32", "--policy", "spmoe.per-layer"]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["measure", "nothing.jsonl"], "nothing.jsonl: cannot be read"),
        (["measure", str(TRACE), "--policy", "magic"], "unknown policy 'magic'"),
        (["measure", str(TRACE), "--policy", "adapmoe.gated"], "policy adapmoe.gated: changes the model's output"),
        (["measure", str(TRACE), "--policy", "fiddler"], "policy fiddler: has a runtime of its own"),
        (["measure", str(TRACE), "--policy", "accelerate.*"], "runtime of its own"),
        (["measure", str(TRACE), "--no-cpu-experts", "--policy", "llamacpp.cpu-moe"], "--no-cpu-experts (cpu_experts"),
        (["measure", str(TRACE), "--tokens", "9999"], "tokens: expected 1 to 2528"),
        (["measure", str(TRACE), "--tokens", "0"], "--tokens: expected a number of tokens, at least 1"),
        (["measure", str(TRACE), "--repeats", "0"], "--repeats"),
        (["measure", str(TRACE), "--cache", "2"], "cache: expected a share of all experts"),
        (["measure", str(TRACE), "--slots", "65"], "slots: expected 1 to 64"),
        (["measure", str(TRACE), "--slots", "1", "--policy", "on-demand.lru-per-layer"], "needs at least 8 slots"),
        (["measure", str(TRACE), "--gamma", "-1"], "gamma: expected a number of drafted tokens"),
        (["measure", str(TRACE), "--model", "magic"], "no draft is known that goes with it"),
        (["measure", str(TRACE), "--model", "magic", "--draft", "pico-draft"], "model 'magic' is unknown"),
        (["measure", str(TRACE), "--draft", "mistral-7b"], "expected a vocabulary of 1024 tokens"),
        (["measure", str(TRACE), "--model", "pico-32l-target"], "model pico-32l-target: expected 8 MoE layers"),
        (["measure", str(TRACE), "--link-gbps", "0"], "link_gbps: expected 10^9 bytes per second, above 0"),
        (["measure", str(TRACE), "--device", "tpu"], "device: expected cuda, cuda:N or cpu"),
        (["measure", str(TRACE), "--host-memory", "1MiB"], "of host memory, but only"),
        (["measure", str(TRACE), "--host-memory", "much"], "host_memory: "),
        (["profile", "--model", "pico-draft", "--draft", "pico-draft"], "has no routed experts"),
        (["profile", "--model", "olmo-1b"], "no draft is known that goes with it"),
        (["profile", "--turns", "0"], "--turns"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], complaint: str, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out.json"
    assert (
        main(
            [*arguments, "--device", "cpu", "--out", str(out)]
            if "--device" not in arguments
            else [*arguments, "--out", str(out)]
        )
        == 2
    )
    said = capsys.readouterr()
    assert complaint in said.err and said.err.count("\n") == 1 and not said.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["profile"], ["measure", str(TRACE)]])
def test_what_cannot_be_written_is_said_before_any_work(command: list[str], tmp_path: Path, capsys: Out) -> None:
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "no" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_trace_is_not_overwritten(capsys: Out) -> None:
    assert main(["measure", str(TRACE), "--out", str(TRACE)]) == 2
    assert "expected a file of its own" in capsys.readouterr().err


def test_what_is_left_out_and_why() -> None:
    pair = BlankPair.read("pico-target", "pico-draft", torch.float32)
    trace = excerpt(TraceFile(TRACE), 8, pair.model, pair.draft_model)
    chosen = choose(pair, trace, ["all"], RunOptions(cache=0.5, gamma=4))
    assert {one.name for one in chosen.recipes} | set(chosen.skipped) == set(RECIPES)
    assert all(one.runtime == NATIVE and one.lossless for one in chosen.recipes)
    # One request of the trace is too few to learn from others; nobody can be asked without a map of layers.
    assert chosen.skipped["static.popular"] == "learns from other requests, and the trace has only one"
    kept_out = choose(pair, trace, ["all"], RunOptions(cache=0.5, gamma=4, cpu_experts=False))
    assert recipe("spmoe.foresight.split") in kept_out.recipes
    assert "--no-cpu-experts" in kept_out.skipped["llamacpp.cpu-moe"]
    narrow = pair._replace(layer_map=None, why="the draft is narrow", next_gate=False)
    skipped = choose(narrow, trace, ["all"], RunOptions(cache=0.5, gamma=4)).skipped
    assert skipped["spmoe.paper"] == "needs draft forecasts, which these models do not give: the draft is narrow"
    assert skipped["next-gate"].startswith("needs next_gate forecasts, which this model does not give")
    with pytest.raises(InputError, match="needs draft forecasts, which these models do not give"):
        choose(narrow, trace, ["spmoe.paper"], RunOptions(cache=0.5, gamma=4))
    rest = choose(narrow, trace, ["spmoe.paper", "fiddler", "on-demand.lru"], RunOptions(cache=0.5, gamma=4))
    assert [one.name for one in rest.recipes] == ["on-demand.lru"] and set(rest.skipped) == {"spmoe.paper", "fiddler"}
