"""docs/validation.md from the results; the words that explain them are in explanations.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import OUTSIDE, table
from benchmarks.validation import cascade, hybrimoe, layer_times, offloading, shapes
from benchmarks.validation.inputs import CONFIG

EXPLANATIONS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("explanations.json").read_text(encoding="utf-8")
)

HEAD = """# Checked against published figures

Made by `python -m benchmarks.validation --data FOLDER` (`benchmarks/validation/`).  Settings and criteria are in
`benchmarks/validation/config.json` and were committed before the first run; the numbers below are in
`benchmarks/results/validation.json`.  FOLDER holds two things that are not part of the project: routing of
Mixtral-8x7B-Instruct recorded under vLLM on two HumanEval problems (338 tokens, published in the GitHub repository
Mario928/speculative-moe), and a table of speeds copied from papers.  What was drawn is said where it matters; the
DeepSeek-V2-Lite trace is synthetic.

*Inside* and *outside* refer to the criterion named in each section.  What misses is explained, not tuned away.
"""


SECTIONS = {
    "offloading": offloading,
    "hybrimoe": hybrimoe,
    "spmoe": shapes,
    "cascade": cascade,
    "machine": layer_times,
}


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    rows = [row for name, check in SECTIONS.items() for row in check.summary(found[name])]
    inputs = "".join(f"- `{name}`: SHA-256 `{digest}`\n" for name, digest in found["inputs"].items())
    parts = [HEAD, inputs, table(("what", "criterion", "ours", "verdict"), rows)]
    for number, (name, check) in enumerate(SECTIONS.items(), start=1):
        parts.append(f"## {number}. {CONFIG[name]['title']}\n")
        text = check.section(found[name])
        if OUTSIDE in text and not EXPLANATIONS.get(name):
            raise ValueError(f"{name}: something misses, and nothing explains it")
        parts.append(text)
        parts += [f"{text}\n" for text in EXPLANATIONS.get(name, [])]
    return "\n".join(parts)
