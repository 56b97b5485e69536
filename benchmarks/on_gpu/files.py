"""The files that stages leave behind: one each, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.on_gpu.stages import Stage
from spmoe.files import atomic_write

NOT_ON_A_GPU: Final = "run small on the CPU, to show that it works: not yet measured on a GPU"

Document = dict[str, Any]


def stage_path(folder: Path, stage: Stage) -> Path:
    """Where the result of a stage is."""
    return folder / f"{stage.name}.json"


def profile_path(folder: Path, model: str) -> Path:
    """Where the profile that was measured with a model is."""
    return folder / f"profile-{model}.json"


def run_path(folder: Path, stage: Stage) -> Path:
    """Where the run file of a stage is."""
    return folder / f"run-{stage.name}.json"


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A line for each field of the outermost object and each entry of its lists: small, and fit to be compared."""
    fields = []
    for name, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list | tuple) and value:
            text = "[\n" + ",\n".join(f"    {json.dumps(each)}" for each in value) + "\n  ]"
        elif isinstance(value, dict) and len(text) > 100:
            text = "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"
        fields.append(f"  {json.dumps(name)}: {text}")
    with atomic_write(path) as stream:
        stream.write("{\n" + ",\n".join(fields) + "\n}\n")


def read_stage(folder: Path, stage: Stage) -> Document | None:
    """What the stage left there with this code and these settings; None where it left nothing."""
    try:
        found = json.loads(stage_path(folder, stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Cut off, perhaps by hand: it is made again.
        return None
    fits = isinstance(found, dict) and found.get("version") == stage.version
    return found if fits else None


def write_stage(
    folder: Path, stage: Stage, device: str, machine: str, seconds: float, *, result: Any = None, error: str = ""
) -> None:
    """The result of a stage, or, in a line, why it has none."""
    note = {} if device == "cuda" else {"note": NOT_ON_A_GPU}
    write_json(
        stage_path(folder, stage),
        {
            "stage": stage.name,
            "state": "failed" if error else "done",
            "device": device,
            **note,
            "machine": machine,
            "seconds": round(seconds, 1),
            "version": stage.version,
            "settings": dict(stage.settings),
            **({"error": error} if error else {"result": result}),
        },
    )
