"""Families of the installed transformers: each is on docs/models.md, and puts out what plain generate does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

import transformers as tf  # noqa: E402

from benchmarks.engine.equality import ALONE, EQUAL, verdict  # noqa: E402
from benchmarks.engine.families import model_types  # noqa: E402
from engine.checkpoints.model_pair import load_whole  # noqa: E402
from engine.engine import Engine  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from tests.paths import ROOT  # noqa: E402

ROWS = dict(
    re.findall(r"^\| `(\w+)` \| \w* \| (.*) \|$", (ROOT / "docs" / "models.md").read_text("utf-8"), re.MULTILINE)
)
OFTEN = {
    "deepseek_v32": "an indexer",
    "gemma4_text": "another spelling of top-k",
    "hunyuan_v1_moe": "no router of its own",
    "lfm2_moe": "convolutions",
    "minimax": "a cache of its own",
    "minimax_m2": "a router with a correction",
    "qwen3_next": "linear attention",
}
"""Tried in every run of the suite, for what they have; the others in a soak."""

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
SMALL = {**COMMON, "num_hidden_layers": 2, "intermediate_size": 24}
PROMPT = tuple(range(3, 33))
NEW = 20
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "short_mscale": 1.0,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

Save = Callable[[Any], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a random model of a configuration; weights are large, so that differences show."""

    def saved(config: Any) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for each in model.parameters():
                if each.ndim > 1:
                    each.normal_(0, 0.5)
        model.save_pretrained(folder)
        return folder

    return saved


def plain(folder: Path, prompt: tuple[int, ...] = PROMPT) -> tuple[int, ...]:
    model = load_whole(folder, torch.float64, torch.device("cpu"), "eager")
    model.generation_config = tf.GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=None)
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        return tuple(model.generate(inputs, attention_mask=torch.ones_like(inputs))[0, len(prompt) :].tolist())


def run(folder: Path, draft: Path | None = None, prompt: tuple[int, ...] = PROMPT, **options: Any) -> tuple[int, ...]:
    with Engine.from_pretrained(folder, draft, dtype="float64", device="cpu", **options) as engine:
        return engine.generate(prompt, NEW, ignore_eos=True).tokens


def test_the_page_has_every_family_of_the_installed_transformers() -> None:
    """A new release brings new ones: `python -m benchmarks.pages models` tries them."""
    installed = set(model_types())
    assert len(installed) > 20
    # The page is made with one release; of an older one it has more.
    assert installed <= ROWS.keys()


def test_what_the_page_says_of_them() -> None:
    runs = [name for name, result in ROWS.items() if result in (EQUAL, ALONE)]
    assert len(runs) >= 55
    assert not [name for name, result in ROWS.items() if result.startswith("differs")]


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in ROWS]
)
def test_a_family_puts_out_what_the_page_says(model_type: str) -> None:
    if model_type not in set(model_types()):
        pytest.skip(f"transformers {tf.__version__} has no {model_type}")
    assert verdict(model_type).result == ROWS[model_type]


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:12], tuple(range(3, 63))], ids=["across", "before", "behind"])
def test_frequencies_that_change_with_the_length(save: Save, drafted: bool, prompt: tuple[int, ...]) -> None:
    """At the 33rd token phimoe reads all of them once more, by other frequencies."""
    phimoe = save(
        tf.PhimoeConfig(**SMALL, num_local_experts=4, max_position_embeddings=256, rope_parameters=dict(LONGROPE))
    )
    draft = save(tf.LlamaConfig(**SMALL)) if drafted else None
    assert run(phimoe, draft, prompt) == plain(phimoe, prompt)
    itself = save(tf.LlamaConfig(**SMALL))
    assert run(phimoe, itself, prompt, policy="on-demand.lru", gamma=5) == plain(phimoe, prompt)


@pytest.mark.parametrize("length", [20, 34, 50])
def test_frequencies_that_change_with_every_token(save: Save, length: int) -> None:
    """And what a longer request leaves behind in the model is not there for the next one."""
    options = {"head_dim": 8, "max_position_embeddings": 36, "rope_parameters": dict(DYNAMIC)}
    folder, draft = save(tf.MixtralConfig(**SMALL, num_local_experts=4, **options)), save(tf.LlamaConfig(**SMALL))
    prompt = tuple(range(3, 3 + length))
    with Engine.from_pretrained(folder, draft, dtype="float64", device="cpu", context=100) as engine:
        for each in (prompt, (*prompt, *prompt[:20]), prompt):
            assert engine.generate(each, NEW, ignore_eos=True).tokens == plain(folder, each)


def test_a_draft_that_cannot_take_tokens_back_is_refused(save: Save) -> None:
    target = save(tf.MixtralConfig(**SMALL, num_local_experts=4))
    for config in (
        tf.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
        tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=0),
    ):
        with pytest.raises(InputError, match=r"cannot be taken out again; expected a draft with plain attention only"):
            run(target, save(config))


def test_a_target_that_cannot_take_tokens_back_runs_without_a_draft_and_says_so(save: Save) -> None:
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "shared_intermediate_size": 16}
    target = save(
        tf.GraniteMoeHybridConfig(
            **SMALL, num_local_experts=4, num_experts_per_tok=2, layer_types=["mamba", "attention"], **mamba
        )
    )
    draft = save(tf.LlamaConfig(**SMALL))
    with Engine.from_pretrained(target, draft, dtype="float64", device="cpu") as engine:
        (note,) = engine.plan.notes
        assert "runs without speculation" in note and engine.plan.draft is None
        assert engine.generate(PROMPT, NEW, ignore_eos=True).tokens == plain(target)
        assert engine.transfers().drafted == 0


def test_a_draft_of_a_shorter_context_stops_drafting_there(save: Save) -> None:
    target = save(tf.MixtralConfig(**SMALL, num_local_experts=4))
    short = save(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=36, pad_token_id=0))
    with Engine.from_pretrained(target, short, dtype="float64", device="cpu", policy="on-demand.lru") as engine:
        assert engine.generate(PROMPT, NEW, ignore_eos=True).tokens == plain(target)
        assert 0 < engine.transfers().drafted < NEW
        longer = (*PROMPT, *PROMPT)
        assert engine.generate(longer, NEW, ignore_eos=True).tokens == plain(target, longer)


def test_stretched_positions_are_no_limit(save: Save) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    folder = save(
        tf.MixtralConfig(**SMALL, num_local_experts=4, head_dim=8, max_position_embeddings=40, rope_parameters=yarn)
    )
    prompt = (*PROMPT, *PROMPT)
    assert run(folder, None, prompt) == plain(folder, prompt)
