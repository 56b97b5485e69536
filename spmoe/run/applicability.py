"""Which policies can run on a trace in a setting, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spmoe.errors import InputError
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import fallback
from spmoe.run.setting import Setting
from spmoe.trace.schema import FORECAST_NAMES, Header
from spmoe.trace.summary import TraceSummary


def sort_out(
    chosen: Iterable[Recipe], header: Header, summary: TraceSummary, setting: Setting, lossy: bool
) -> tuple[list[Recipe], dict[str, str]]:
    """Those that trace and cache allow, and why not the others.  InputError where they allow none.

    `lossy` allows those that change the model's output.
    """
    applicable, skipped = [], {}
    for candidate in chosen:
        missing = obstacle(candidate, header, summary, setting, lossy)
        if missing is None:
            applicable.append(candidate)
        else:
            skipped[candidate.name] = missing
    if not applicable:
        raise none_applies(skipped)
    return applicable, skipped


def none_applies(skipped: Mapping[str, str]) -> InputError:
    """The error where no policy is left, with the reason of each; policies with the same reason share it."""
    names: dict[str, list[str]] = {}
    for name, why in skipped.items():
        names.setdefault(why, []).append(name)
    if len(skipped) == 1:
        ((name, why),) = skipped.items()
        return InputError(f"policy {name}: {why}")
    reasons = "; ".join(f"{', '.join(those)}: {why}" for why, those in names.items())
    return InputError(f"policies: none of these {len(skipped)} applies: {reasons}")


def obstacle(candidate: Recipe, header: Header, summary: TraceSummary, setting: Setting, lossy: bool) -> str | None:
    """Why a policy cannot run; None where it can."""
    if (why := obstacle_of_output(candidate, lossy)) is not None:
        return why
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


def obstacle_of_output(candidate: Recipe, lossy: bool) -> str | None:
    """Why a policy that changes the model's output cannot run; None where it can, or where it changes nothing."""
    return None if candidate.lossless or lossy else "changes the model's output; --lossy (lossy=True) allows it"


def cpu_obstacle(candidate: Recipe, setting: Setting) -> str | None:
    """Why a policy that needs a CPU cannot have it; None where it can, or needs none."""
    if "cpu" not in candidate.needs or setting.cpu_experts:
        return None
    if setting.hardware.cpu is None:
        return f"needs the speed of the CPU, which hardware {setting.hardware.name} does not tell"
    return "needs the CPU, and --no-cpu-experts (cpu_experts=False) turns it off"
