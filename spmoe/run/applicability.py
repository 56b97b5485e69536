"""Which policies can run on a trace in a setting, and why the others cannot."""

from __future__ import annotations

from collections.abc import Container, Iterable

from spmoe.errors import InputError
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import fallback
from spmoe.run.setting import Setting
from spmoe.trace.schema import FORECAST_NAMES, Header
from spmoe.trace.summary import TraceSummary


def sort_out(
    chosen: Iterable[Recipe],
    header: Header,
    summary: TraceSummary,
    setting: Setting,
    lossy: bool,
    named: Container[str],
) -> tuple[list[Recipe], dict[str, str]]:
    """Those that trace and cache allow, and why not the others; InputError for one `named` outright that they do not.

    `lossy` allows those that change the model's output.
    """
    applicable, skipped = [], {}
    for candidate in chosen:
        missing = obstacle(candidate, header, summary, setting, lossy)
        if missing is None:
            applicable.append(candidate)
        elif candidate.name in named:
            raise InputError(f"policy {candidate.name}: {missing}")
        else:
            skipped[candidate.name] = missing
    return applicable, skipped


def obstacle(candidate: Recipe, header: Header, summary: TraceSummary, setting: Setting, lossy: bool) -> str | None:
    """Why a policy cannot run; None where it can."""
    if not (candidate.lossless or lossy):
        return "changes the model's output; --lossy (lossy=True) allows it"
    lacking = set(FORECAST_NAMES).difference(header.forecasts)
    for name in sorted(candidate.needs & lacking):
        instead = fallback(candidate, lacking)
        hint = f"; {instead.name} does without" if instead else ""
        return f"needs {name} forecasts, which the trace does not have{hint}"
    if "popularity" in candidate.needs and summary.requests < 2:
        return "learns from other requests, and the trace has only one"
    lacking_cpu = cpu_obstacle(candidate, setting)
    if lacking_cpu is not None:
        return lacking_cpu
    least = candidate.placement.least(setting.shape)
    if setting.slots < least:
        return f"needs at least {least} slots, and there are {setting.slots}"
    return None


def cpu_obstacle(candidate: Recipe, setting: Setting) -> str | None:
    """Why a policy that needs a CPU cannot have it; None where it can, or needs none."""
    if "cpu" not in candidate.needs or setting.cpu_experts:
        return None
    if setting.hardware.cpu is None:
        return f"needs the speed of the CPU, which hardware {setting.hardware.name} does not tell"
    return "needs the CPU, and --no-cpu-experts (cpu_experts=False) turns it off"
