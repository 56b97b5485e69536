"""The engine as an object of Python: several requests, streams left early, and what is left when it is closed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engine.engine import Engine  # noqa: E402
from engine.tinypair import write_random_pair  # noqa: E402
from spmoe.errors import InputError  # noqa: E402

PROMPT = list(range(60, 80))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def engine(pair: tuple[Path, Path]) -> Iterator[Engine]:
    with Engine.from_pretrained(*pair, cache=0.5) as engine:
        yield engine


def test_what_is_streamed_is_what_is_generated(engine: Engine) -> None:
    pieces = list(engine.stream("Hello", 24))
    whole = engine.generate("Hello", 24)
    assert tuple(token for piece in pieces for token in piece.tokens) == whole.tokens
    assert "".join(piece.text for piece in pieces) == whole.text
    assert engine.plan.tokenizer.decode(whole.tokens, skip_special_tokens=True) == whole.text
    assert len(pieces) > 1


def test_a_request_may_follow_one_that_was_left_between_two_rounds(engine: Engine) -> None:
    whole = engine.generate(PROMPT, 24).tokens
    for _ in zip(range(3), engine.stream(PROMPT, 24), strict=False):
        pass
    assert engine.generate(PROMPT, 24).tokens == whole
    assert engine.metrics().requests == 3


def test_one_request_at_a_time(engine: Engine) -> None:
    first = engine.stream(PROMPT, 24)
    next(first)
    with pytest.raises(RuntimeError, match="busy with another request"):
        engine.generate(PROMPT, 8)
    assert len([*first]) > 1


def test_sampling_repeats_with_a_seed(engine: Engine) -> None:
    drawn = [engine.generate(PROMPT, 24, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_weights_can_be_checked(engine: Engine) -> None:
    engine.generate(PROMPT, 24)
    engine.check_weights()
    key, slot = next(iter(engine._driver.resident().items()))
    engine._slots.rows(slot, 1)[0, 7] ^= 1
    with pytest.raises(RuntimeError, match=f"expert {key} in slot {slot} is not what host memory holds"):
        engine.check_weights()
    engine._store.blob(key)[7] ^= 1
    with pytest.raises(RuntimeError, match=f"expert {key} has changed in host memory"):
        engine.check_weights()


def test_closing_frees_threads_and_memory(pair: tuple[Path, Path]) -> None:
    threads = threading.active_count()
    gc.collect()
    gc.disable()  # Nothing may wait for the collector: a GPU's memory would stay taken.
    try:
        engine = Engine.from_pretrained(*pair, cache=0.5, record=True)
        engine.generate(PROMPT, 8)
        large = [weakref.ref(each) for each in (engine._model, engine._draft_model, engine._store, engine._slots)]
        assert threading.active_count() > threads
        engine.close()
        engine.close()
        assert threading.active_count() == threads
        assert [each() for each in large] == [None] * 4
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(PROMPT, 8)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt: expected at least one token"),
        ([-1], {}, r"prompt: expected token ids within 0\.\.258"),
        ([259], {}, r"prompt: expected token ids within 0\.\.258"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (PROMPT, {"max_new_tokens": 4096}, "context: room is reckoned for 4096 tokens, got 20 of prompt and 4096 new"),
        (PROMPT, {"temperature": -1.0}, "temperature: expected a finite number from 0 up"),
        (PROMPT, {"seed": -1, "temperature": 1.0}, "seed: expected an integer from 0"),
    ],
)
def test_bad_requests(engine: Engine, prompt: list[int], options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.stream(prompt, **options)
    assert len(engine.generate(PROMPT, 4).tokens) == 4
