"""Where the files lie that tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TRACES: Final = ROOT / "traces"
DOCS: Final = ROOT / "docs"
PROFILES: Final = ROOT / "profiles"

RECORDED: Final = ROOT.parent / "shared" / "data" / "mixtral-8x7b-instruct.humaneval.jsonl"
"""A recording of Mixtral's routing, too large for the repository: tests of it are skipped where it is missing."""
