"""Whole runs of the smallest recipe: the same weights again, whatever interrupts them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.pages.markers import updated
from benchmarks.pages.prediction import PAGE, blocks_of
from benchmarks.sim.prediction import of_pair
from engine.checkpoints.checksums import check_sums
from spmoe.errors import InputError
from tests.paths import ROOT
from training.card import card
from training.corpus import Corpus
from training.evaluation import evaluate
from training.loop import Watch
from training.progress import OutOfTime, shown
from training.prompts import held_out_prompts
from training.recipe import MICRO, PICO, RECIPES, Recipe
from training.stages import Run
from training.states import Row, State, read_state, write_state

MODELS = ("draft", "control", "target")


class Cut(Exception):
    """Stands for whatever ends a process in the middle of a step."""


@contextmanager
def unwatched(_stage: str, _steps: int) -> Iterator[Watch]:
    yield lambda row: None


def cut_at(wanted: str, step: int) -> object:
    @contextmanager
    def progress(stage: str, _steps: int) -> Iterator[Watch]:
        def watch(row: Row) -> None:
            if (stage, row.step) == (wanted, step):
                raise Cut

        yield watch

    return progress


def digests(folder: Path) -> dict[str, str]:
    """Of everything that a run leaves."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    Run(folder, MICRO, corpus).all(unwatched)
    return folder


def test_an_interrupted_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path, corpus: Corpus) -> None:
    # Behind a saved state, on one, before the first, and behind what thaws.
    for stage, step in (("dense", 5), ("upcycle", 1), ("upcycle", 8), ("control", 3)):
        with pytest.raises(Cut):
            Run(tmp_path, MICRO, corpus).all(cut_at(stage, step))  # type: ignore[arg-type]
        torch.randn(7)  # What else draws from the global generator in between changes nothing.
    Run(tmp_path, MICRO, corpus).all(unwatched)
    assert digests(tmp_path) == digests(whole)


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
import torch
from training.corpus import read_corpus
from training.recipe import MICRO
from training.stages import Run

@contextmanager
def progress(stage, steps):
    yield lambda row: (stage, row.step) == ("upcycle", 5) and os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
root, folder = map(Path, sys.argv[1:])
corpus = read_corpus(root, "made up", frozenset(path.stem for path in root.iterdir()))
Run(folder, MICRO, corpus).all(progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_is_gone_on_with_to_the_same_bytes(
    whole: Path, made_up: Path, tmp_path: Path, corpus: Corpus
) -> None:
    command = [sys.executable, "-c", KILLED, str(made_up), str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "target").exists()
    Run(tmp_path, MICRO, corpus).all(unwatched)
    assert digests(tmp_path) == digests(whole)


def test_a_run_that_is_done_changes_nothing(whole: Path, corpus: Corpus) -> None:
    before = digests(whole)
    Run(whole, MICRO, corpus).all(unwatched)
    assert digests(whole) == before


def test_where_only_the_models_are_nothing_is_trained(whole: Path, tmp_path: Path, corpus: Corpus) -> None:
    """As in a clone of this repository."""
    shipped = tmp_path / "shipped"
    shutil.copytree(whole, shipped, ignore=shutil.ignore_patterns("states", "curve*"))
    before = digests(shipped)

    def never(stage: str, _steps: int) -> object:
        raise AssertionError(stage)

    Run(shipped, MICRO, corpus).all(never)  # type: ignore[arg-type]
    assert digests(shipped) == before


def test_another_seed_gives_other_weights(whole: Path, tmp_path: Path, corpus: Corpus) -> None:
    Run(tmp_path, replace(MICRO, seed=1), corpus).all(unwatched)
    ours, theirs = digests(tmp_path), digests(whole)
    for name in MODELS:
        assert ours[f"{name}/model.safetensors"] != theirs[f"{name}/model.safetensors"]
    assert ours["draft/tokenizer.json"] == theirs["draft/tokenizer.json"]


def test_models_come_with_the_sums_of_their_files(whole: Path) -> None:
    for name in MODELS:
        listed = [line.split("  ")[1] for line in (whole / name / "SHA256SUMS").read_text().splitlines()]
        assert listed == sorted(path.name for path in (whole / name).iterdir() if path.name != "SHA256SUMS")
        check_sums(whole / name)


def test_prompts_are_held_out_and_begin_with_a_line(whole: Path, corpus: Corpus) -> None:
    prompts = held_out_prompts(whole, corpus, 5, 16)
    assert len(prompts) == 5
    learned, held_out = ("\n".join(each.text for each in part) for part in (corpus.learned, corpus.held_out))
    for prompt in prompts:
        assert "\n" + prompt in "\n" + held_out
    assert any(prompt not in learned for prompt in prompts)
    with pytest.raises(InputError, match="trained on made up"):
        held_out_prompts(whole, replace(corpus, fingerprint="0"), 5, 16)


def test_it_learns(whole: Path) -> None:
    rows = [line.split(",") for line in (whole / "curve.csv").read_text().splitlines()]
    assert rows[0] == ["stage", "step", "loss", "balance"]
    losses = {
        stage: [float(row[2]) for row in rows[1:] if row[0] == stage] for stage in ("dense", "control", "upcycle")
    }
    assert [len(each) for each in losses.values()] == [12, 10, 10]
    assert losses["dense"][-1] < losses["dense"][0] - 0.3
    assert losses["control"][-1] < losses["dense"][-1]


def test_figures_and_card_come_from_the_models(whole: Path, corpus: Corpus) -> None:
    figures = evaluate(whole, corpus)
    json.dumps(figures, allow_nan=False)
    assert 1 < figures["perplexity"]["control"] < figures["perplexity"]["draft"] < MICRO.vocabulary
    assert all(0 <= rate["share"] <= 1 < rate["drafted"] for rate in figures["acceptance"].values())
    assert len(figures["layers"]) == MICRO.layers
    assert figures["predictors"] == figures["layers"][1]["predictors"]  # the mean over all but layer 0
    assert "next_gate" not in figures["layers"][0]["predictors"]
    tokens = figures["held_out"]["tokens"]
    groups = [(group["first_layer"], group["last_layer"]) for group in figures["reliability"]]
    assert groups == [(0, 0), (1, 1)]
    assert all(sum(each["cells"] for each in group["bins"]) == tokens for group in figures["reliability"])
    text = card(MICRO, json.loads((whole / "run.json").read_text()), figures)
    assert f"| draft | {figures['perplexity']['draft']:.2f} |" in text
    assert "PSF-2.0" in text
    assert f"| {figures['predictors']['next_gate']['top1_used']:.3f} |" in text
    # What docs/prediction.md makes of them.
    found = {"pair": of_pair(figures), "measured": None, "traces": {}, "policies": {}}
    page = updated(blocks_of(found))[PAGE]
    share = f"{100 * figures['layers'][0]['predictors']['token_table']['top1_used']:.1f} %"
    assert f" | {share} | " in page[page.index("| 0 |") :].partition("\n")[0]


def test_figures_of_another_corpus_are_refused(whole: Path, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"trained on made up, sha256 \w+; this is made up, sha256 0"):
        evaluate(whole, replace(corpus, fingerprint="0"))


def exchange(folder: Path) -> None:
    (folder / "draft").rename(folder / "other")
    (folder / "target").rename(folder / "draft")
    (folder / "other").rename(folder / "target")


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (exchange, r"draft: expected routed experts in 0 layers, found them in 2$"),
        (lambda folder: rewrite(folder / "target" / "tokenizer.json", "<s>", "<t>"), "tokenizer.json: damaged"),
        (lambda folder: rewrite(folder / "control" / "config.json", "32", "64"), "config.json: damaged"),
        (
            lambda folder: rewrite(folder / "run.json", '"context": 32', '"context": 64'),
            r"draft: max_position_embeddings: expected 64, as run.json says, got 32$",
        ),
    ],
)
def test_models_of_another_run_are_not_rated(
    whole: Path, corpus: Corpus, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        evaluate(folder, corpus)


def test_a_damaged_tokenizer_makes_no_prompts(whole: Path, corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    rewrite(folder / "target" / "tokenizer.json", "<s>", "<t>")
    with pytest.raises(InputError, match=r"tokenizer.json: damaged or exchanged"):
        held_out_prompts(folder, corpus, 3, 8)


def test_a_folder_of_another_recipe_or_corpus_is_refused(whole: Path, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"run.json: field recipe.noise: expected 0.1, as now, got [\d.]+$"):
        Run(whole, replace(MICRO, noise=0.1), corpus)
    with pytest.raises(InputError, match=r"run.json: field corpus.sha256: expected 0, as now"):
        Run(whole, MICRO, replace(corpus, fingerprint="0"))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state = State(1, {"a": torch.ones(2)}, {"a/step": torch.tensor(3.0)}, (Row(0, 1.5, None),))
    write_state(path, state, "this")
    found = read_state(path, "this")
    assert found is not None and found.step == 1 and found.curve == state.curve
    assert torch.equal(found.memory["a/step"], torch.tensor(3.0))
    with pytest.raises(InputError, match=r"state.safetensors: expected a state of this stage and run"):
        read_state(path, "that")
    for wrong in (state._replace(step=2), state._replace(step=0, curve=())):
        write_state(path, wrong, "this")
        with pytest.raises(InputError, match=rf"state.safetensors: damaged: expected {wrong.step} steps"):
            read_state(path, "this")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"state.safetensors: damaged"):
        read_state(path, "this")


def test_states_of_other_stages_and_models_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(Cut):
        Run(tmp_path, MICRO, corpus).all(cut_at("upcycle", 5))  # type: ignore[arg-type]
    dense, upcycle = (tmp_path / "states" / f"{stage}.safetensors" for stage in ("dense", "upcycle"))
    kept = upcycle.read_bytes()
    upcycle.write_bytes(dense.read_bytes())
    with pytest.raises(InputError, match=r"upcycle.safetensors: expected a state of this stage and run, got another$"):
        Run(tmp_path, MICRO, corpus).all(unwatched)
    upcycle.write_bytes(kept)
    with safe_open(upcycle, framework="pt") as file:
        identity = json.loads(file.metadata()["state"])["run"]
    state = read_state(upcycle, identity)
    assert state is not None
    write_state(upcycle, state._replace(weights={}), identity)
    with pytest.raises(InputError, match=r"upcycle.safetensors: damaged: not all weights are there"):
        Run(tmp_path, MICRO, corpus).all(unwatched)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("layers", 0, "field layers: expected a whole number from 1 up, got 0"),
        ("hidden", 30, "field hidden: expected a multiple of 4, got 30"),
        ("noise", -1.0, "field noise: expected a number from 0 up, got -1.0"),
        ("frozen", 1.5, "field frozen: expected a share from 0 to 1, got 1.5"),
        ("top_k", 5, "field top_k: expected at most 4, got 5"),
        ("vocabulary", 100, "field vocabulary: expected 258 to 32767 tokens, got 100"),
    ],
)
def test_a_recipe_is_checked(field: str, value: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(MICRO, **{field: value})


def test_time_that_is_over_ends_a_run_unless_it_was_the_last_step() -> None:
    with shown(1e-9)("dense", 3) as watch:
        with pytest.raises(OutOfTime):
            watch(Row(0, 1.0, None))
        watch(Row(2, 1.0, None))
    with shown(None)("dense", 3) as watch:
        watch(Row(0, 1.0, None))


def test_recipes_come_back_from_json() -> None:
    for recipe in RECIPES.values():
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "x") == recipe
    with pytest.raises(InputError, match="x: field depth: unknown"):
        Recipe.from_json(PICO.to_json() | {"depth": 1}, "x")
