"""A tiny target and draft for tests and benchmarks: random weights, which nobody has trained.

What they write is noise, and how often they agree says nothing about real models.  But all that the engine does
happens: the draft is the target with one small MLP in place of each layer's experts.  So it guesses many of the
target's tokens and, as embeddings, attention, norms and output head are the same, many of its experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from engine.checkpoints.refusing import quiet

TARGET: Final = "random-target"
DRAFT: Final = "random-draft"
"""The folders' names, so that whatever names the model says that it is random."""

BYTES: Final = 256
SPECIAL: Final = ("<s>", "</s>", "<pad>")
"""The vocabulary: a byte's id is its value; these follow."""

_SHARED: Final[dict[str, Any]] = {
    "vocab_size": BYTES + len(SPECIAL),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "sliding_window": None,
    # Written down, as the two families' defaults differ.
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": BYTES,
    "eos_token_id": BYTES + 1,
    "pad_token_id": BYTES + 2,
    "dtype": "float32",
}


class PairShape(NamedTuple):
    """Sizes of a random pair; both models are as deep and as wide."""

    layers: int = 4
    hidden: int = 64
    experts: int = 8
    top_k: int = 2
    expert_width: int = 16
    dense_width: int = 32


_SEED: Final = 0
_MLP_GAIN: Final = 0.3
"""How large a layer's MLP is: with nothing the draft would be the target, with much they would not agree at all."""


def write_random_pair(folder: Path, shape: PairShape = PairShape()) -> tuple[Path, Path]:
    """Writes both checkpoints, each with the tokenizer, below `folder`; returns the target's folder and the draft's.

    The target is a Mixtral, by default with 0.7 MB in float32, the draft a Mistral.  With one version of transformers
    it writes the same bytes every time.
    """
    generator = torch.Generator().manual_seed(_SEED)
    shared = {**_SHARED, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers}
    sparse = MixtralConfig(
        **shared,
        intermediate_size=shape.expert_width,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
    )
    target = _random(MixtralForCausalLM, sparse, generator)
    draft = _random(MistralForCausalLM, MistralConfig(**shared, intermediate_size=shape.dense_width), generator)
    common = {name: each for name, each in target.state_dict().items() if ".mlp." not in name}
    draft.load_state_dict({**draft.state_dict(), **common})
    tokenizer = byte_tokenizer()
    with quiet():
        for name, model in ((TARGET, target), (DRAFT, draft)):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder / TARGET, folder / DRAFT


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are bytes of UTF-8; it begins every text with "<s>"."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Not byte fallback, behind which no byte is text before the run of bytes is over.
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    begin, end, pad = SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, BYTES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def _random(model_class: Any, config: Any, generator: torch.Generator) -> Any:
    """A model with random weights, without a draw from torch's global generator."""
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")  # Buffers stay empty, too: none is saved.
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "norm" in name:
                each.fill_(1)
                continue
            # Uniform, as its bits are the same on every machine; of variance 1 / inputs.
            each.uniform_(-1, 1, generator=generator).mul_((3 / each.shape[-1]) ** 0.5 * _gain(name))
        _mute(model.lm_head.weight)
    return model


def _gain(name: str) -> float:
    """By how much the weights of parameter `name` are larger than what keeps the size of states."""
    if "down_proj" in name:
        return _MLP_GAIN
    if "embed_tokens" in name:
        return 8.0  # as large as the states of attention
    if "lm_head" in name or ".gate.weight" in name:
        return 4.0  # decided, but not certain
    return 1.0


def _mute(head: torch.Tensor) -> None:
    """Leaves only printable characters of ASCII likely, so that texts can be shown and seldom end early."""
    printable = torch.zeros(len(head), 1)
    printable[0x20:0x7F] = 1
    head.mul_(printable)
