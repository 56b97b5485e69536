"""Prompts for the pair: beginnings of source that it has not learned from."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoints.model_pair import check_folders
from engine.checkpoints.tokenizer_files import load_tokenizer
from training.corpus import Corpus
from training.likelihood import spread
from training.origin import check_corpus
from training.recipe import SPECIAL
from training.stages import TARGET
from training.tokenizer import encode


def held_out_prompts(folder: Path, corpus: Corpus, count: int, length: int) -> list[str]:
    """Pieces of about `length` tokens, from places that are evenly spread over the held-out text of the pair in
    `folder`, each from the beginning of a line; `count` of them, or as many as there is text for.

    InputError where `corpus` is not what the pair was trained on.
    """
    check_corpus(folder, corpus)
    check_folders(folder / TARGET)
    tokenizer = load_tokenizer(folder / TARGET)
    stream = torch.tensor(encode(tokenizer, corpus.held_out))
    prompts = []
    for tokens in spread(stream.unfold(0, 2 * length, 2 * length), count).tolist():
        text = tokenizer.decode(tokens)
        # Of one file, and from the beginning of a line, so that it looks like what people write on from.
        text = text.rpartition(SPECIAL[0])[2].partition(SPECIAL[1])[0]
        text = text[text.find("\n") + 1 :].lstrip("\n")
        cut = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:length])
        if cut.strip():
            prompts.append(cut)
    return prompts
