"""What makes a draft fit its target: loading it, describing it, and checking that both speak of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.checkpoint import read_checkpoint, read_json
from engine.checkpoints.checksums import check_sums
from engine.checkpoints.loader import fill_model, read_shell
from engine.moe.layers import find_moe_layers, kv_values
from spmoe.errors import InputError
from spmoe.machine.geometry import Geometry
from spmoe.trace.schema import DraftShape, ModelShape

_SHOWN = 40
"""Characters of a token in a message."""


def require_folder(folder: Path) -> None:
    """InputError unless `folder` is one, with a configuration: models are not fetched by name."""
    _require_directory(folder)
    read_json(folder / "config.json")


def check_folders(*folders: Path | None) -> None:
    """InputError unless each is a checkpoint's folder, with the files that it should have where it says so itself.

    To be called once, before anything else reads them: sums are made of all their bytes.
    """
    for folder in dict.fromkeys(folders):
        if folder is not None:
            _require_directory(folder)
            check_sums(folder)
            require_folder(folder)


def load_draft(folder: str | Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model in `folder`, all of it on `device`, in evaluation mode.  InputError for whatever is wrong with it."""
    # What is the default for experts knows no float64.
    return load_whole(folder, dtype, device, "eager" if dtype is torch.float64 else None)


def load_whole(folder: str | Path, dtype: torch.dtype, device: torch.device, experts: str | None) -> Any:
    """The same; `experts` names transformers' way to compute experts (None: its default)."""
    folder = Path(folder)
    shell, checkpoint = read_shell(folder, dtype), read_checkpoint(folder)
    # None is said, too: a shell has chosen its own way for the meta device.
    model = fill_model(type(shell), shell, checkpoint, checkpoint.tensors, dtype, experts_implementation=experts)
    return model.to(device).eval()


def describe_draft(model: Any, name: str) -> DraftShape:
    """What a trace says of the draft `model`; what is active is counted as `spmoe.machine.geometry.DraftModel` does.

    Raises InputError for a model without attention.
    """
    config = model.config.get_text_config()
    if getattr(config, "num_attention_heads", None) is None:
        raise InputError(
            f"{name}: {type(model).__name__} keeps a state instead of keys and values, and cannot go back behind a "
            "rejected token; expected a draft with attention"
        )
    params = sum(each.numel() for each in model.parameters())
    read, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    layers = find_moe_layers(model)
    experts = sum(each.numel() for layer in layers for each in layer.expert_parameters().values())
    asleep = experts - experts * config.num_experts_per_tok // layers[0].experts.num_experts if layers else 0
    asleep += 0 if read is head else read.numel()  # A token looks up a single row.
    return DraftShape(name, params, params - asleep, 2 * config.num_hidden_layers * kv_values(config))


def describe_target(geometry: Geometry) -> ModelShape:
    """What a trace says of a target."""
    return ModelShape(
        geometry.name,
        geometry.layers,
        geometry.experts,
        geometry.top_k,
        geometry.expert_params,
        geometry.dense_params,
        geometry.kv_bytes_per_token,
    )


def check_tokenizers(target: Any, draft: Any, source: str) -> tuple[str, ...]:
    """InputError where the draft's tokenizer gives a token another number than the target's; notes on what differs and
    does no harm.

    Tokens that only one of them has are fine: vocabularies are padded and extended.  So are special and added tokens
    that only their names tell apart: text never becomes one of them by chance, and models exchange numbers.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    names = {number: token for token, number in ours.items()}
    added = _added(target) & _added(draft)
    renamed: list[str] = []
    for token, number in sorted(theirs.items(), key=lambda item: item[1]):
        known = ours.get(token)
        if known == number or (known is None and number not in names):
            continue
        differs = (
            f"{number} is {token[:_SHOWN]!r} to the draft and {names.get(number, 'nothing')[:_SHOWN]!r} to the target"
        )
        if known is not None or number not in added:
            raise InputError(f"{source}: expected the target's tokenizer; token {differs}")
        renamed.append(differs)
    if not renamed:
        return ()
    more = f", as {len(renamed) - 1:,} more" if len(renamed) > 1 else ""
    return (f"{source}: special token {renamed[0]}{more}; they are taken for the same",)


def _added(tokenizer: Any) -> set[int]:
    """The numbers of tokens that text is not made of: special ones, and those added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _require_directory(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; expected a checkpoint on this machine (`hf download` fetches one)")
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a checkpoint's folder, got a file")
