"""The stages of a run, each of which goes on where it stands: dense, upcycle, control.

Where all three models are there, nothing is trained any more.

DIR/run.json                 recipe, corpus and versions: what the weights follow from
DIR/states/STAGE.safetensors where a stage stands, float32
DIR/draft, target, control   the models, bfloat16, each with the tokenizer and SHA256SUMS
DIR/curve.csv, curve.png
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from engine.checkpoints.checkpoint import read_json
from engine.checkpoints.checksums import SUMS, write_sums
from engine.checkpoints.refusing import quiet
from spmoe.errors import InputError
from spmoe.files import atomic_write
from training.corpus import LICENCE, Corpus
from training.curve import draw, write_csv
from training.learners import dense_learner, sparse_learner
from training.loop import Job, Watch, train
from training.models import empty_dense, empty_sparse, fresh_dense
from training.recipe import Recipe
from training.states import Row, read_state
from training.tokenizer import train_tokenizer
from training.tokens import Batches, Tokens, tokenise
from training.upcycling import upcycle

DRAFT: Final = "draft"
CONTROL: Final = "control"
TARGET: Final = "target"
TRAINED: Final = {"dense": DRAFT, "upcycle": TARGET, "control": CONTROL}
"""Which model a stage of training makes."""
SAMPLE: Final = 64
"""Windows that fresh routers are suited to."""

Progress = Callable[[str, int], AbstractContextManager[Watch]]
"""Shows a stage of so many steps."""


class Run:
    """A run in `folder`.  Its results depend on recipe, corpus, versions and threads, never on how long it took or how
    often it was interrupted."""

    def __init__(self, folder: Path, recipe: Recipe, corpus: Corpus) -> None:
        """Begins or goes on.  InputError where `folder` holds a run of another recipe, corpus or machine's versions."""
        self.folder = folder
        self.recipe = recipe
        self.corpus = corpus
        self._curves: dict[str, tuple[Row, ...]] = {}
        document = {
            "format": "spmoe-training/1",
            "recipe": recipe.to_json(),
            "corpus": {"name": corpus.name, "licence": LICENCE, "sha256": corpus.fingerprint},
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        }
        path = folder / "run.json"
        if path.exists():
            found = read_json(path)
            for name, value in document.items():
                if found.get(name) != value:
                    field, expected, got = _first_difference(name, value, found.get(name))
                    raise InputError(f"{path}: field {field}: expected {expected}, as now, got {got}")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as stream:
                stream.write(json.dumps(document, indent=2) + "\n")
        for torn in (folder / "states").glob(".*.tmp"):  # of a process that was killed
            torn.unlink()
        self._document = document

    def all(self, progress: Progress) -> None:
        """Every stage, in order."""
        if all((self.folder / name / SUMS).is_file() for name in TRAINED.values()):
            return
        (self.folder / "states").mkdir(exist_ok=True)
        tokenizer = train_tokenizer(self.corpus.learned, self.recipe.vocabulary)
        tokens = tokenise(tokenizer, self.corpus)
        shortest = 2 * self.recipe.context + 1
        if min(len(each) for each in tokens) < shortest:
            raise InputError(f"{self.corpus.name}: expected at least {shortest} tokens in each part, got fewer")
        for stage in TRAINED:
            self._train(stage, tokens, tokenizer, progress)
        first = {stage: self._first(stage) for stage in TRAINED}
        write_csv(self.folder / "curve.csv", self._curves)
        draw(self.folder / "curve.png", self._curves, first, self.recipe.step_tokens)

    def _train(self, stage: str, tokens: Tokens, tokenizer: Any, progress: Progress) -> None:
        recipe = self.recipe
        model = self._model(stage, tokens)
        if stage == "upcycle":
            learner = sparse_learner(model, recipe)
        else:
            fresh = stage == "dense"
            steps = recipe.dense_steps if fresh else recipe.upcycle_steps
            learner = dense_learner(model, recipe, steps, 1.0 if fresh else recipe.control_gain)
        batches = Batches(tokens.learned, recipe)
        job = Job(model, learner, batches, self._first(stage), self._state(stage), self._identity(stage), recipe)
        with progress(stage, learner.schedule.steps) as watch:
            self._curves[stage] = train(job, watch)
        export(model, tokenizer, self.folder / TRAINED[stage])

    def _model(self, stage: str, tokens: Tokens) -> Any:
        """What a stage begins with; a stage under way replaces its weights."""
        if stage == "dense":
            return fresh_dense(self.recipe)
        if self._state(stage).is_file():
            return (empty_sparse if stage == "upcycle" else empty_dense)(self.recipe)
        done = read_state(self._state("dense"), self._identity("dense"))
        assert done is not None
        model = empty_dense(self.recipe)
        model.load_state_dict(done.weights)
        if stage == "control":
            return model
        batches = Batches(tokens.learned, self.recipe)
        sample = torch.cat([batches.at(step) for step in range(-(-SAMPLE // self.recipe.batch))])
        return upcycle(model.eval(), self.recipe, sample[:SAMPLE, :-1])

    def _identity(self, stage: str) -> str:
        """What distinguishes a state from those of other stages and runs."""
        return json.dumps({**self._document, "stage": stage}, sort_keys=True)

    def _state(self, stage: str) -> Path:
        return self.folder / "states" / f"{stage}.safetensors"

    def _first(self, stage: str) -> int:
        return 0 if stage == "dense" else self.recipe.dense_steps


def _first_difference(name: str, expected: Any, got: Any) -> tuple[str, Any, Any]:
    """Two values that differ, or the first of their fields that does, by its whole name."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for field in sorted(expected.keys() | got.keys()):
            if expected.get(field) != got.get(field):
                return f"{name}.{field}", expected.get(field), got.get(field)
    return name, expected, got


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes `model` in bfloat16, with the tokenizer and the sums of all files; replaces what is there."""
    with quiet(), _whole_folder(folder) as beside:
        model.config.use_cache = True
        model.to(torch.bfloat16).save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        write_sums(beside)


class _whole_folder(AbstractContextManager[Path]):
    """A folder to fill, which takes its name when the block ends well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beside = folder.with_name(f".{folder.name}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.mkdir(parents=True)
        return self._beside

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._beside.rename(self._folder)
        else:
            shutil.rmtree(self._beside, ignore_errors=True)
