"""Whether a draft fits its target: tokens, and what becomes of those that are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.checkpoints.loader import Blueprint
from engine.checkpoints.model_pair import check_tokenizers
from engine.checkpoints.tokenizer_files import find_tokenizer
from engine.decoding.kv_cache import lasting_layers
from spmoe.errors import InputError


def usable_draft(draft: Path | None, blueprint: Blueprint) -> tuple[Path | None, str]:
    """The draft, unless its target could not take back a token that it rejects; then why it is left out."""
    if draft is None or not (lasting := lasting_layers(blueprint.shell)):
        return draft, ""
    return None, (
        f"{blueprint.checkpoint.folder}: what a rejected token leaves in layers of {type(blueprint.shell).__name__} "
        f"({', '.join(lasting)}) cannot be taken out again, so it runs without speculation, and without the draft"
    )


def check_rollback(draft: Any, folder: Path) -> None:
    """InputError where the draft in `folder` could not take back a token that is rejected."""
    if lasting := lasting_layers(draft):
        raise InputError(
            f"{folder}: what a rejected token leaves in layers of {type(draft).__name__} ({', '.join(lasting)}) cannot "
            "be taken out again; expected a draft with plain attention only"
        )


def check_vocabularies(target: Any, draft: Any, tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """InputError unless both models speak of the same tokens; returns notes on those that they call otherwise."""
    theirs = find_tokenizer(folder)
    if tokenizer is not None and theirs is not None:
        return check_tokenizers(tokenizer, theirs, str(folder))
    if (ours := target.config.get_text_config().vocab_size) != draft.config.get_text_config().vocab_size:
        raise InputError(
            f"{folder}: expected a vocabulary of {ours} tokens, as the target's, got "
            f"{draft.config.get_text_config().vocab_size}"
        )
    return ()
