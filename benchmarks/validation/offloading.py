"""Check 1: the speeds of mixtral-offloading, fitted on its 2-bit rows and predicted for its 3-bit rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.markdown import table, verdict
from benchmarks.validation.inputs import CONFIG, machine, published_speeds, real_trace
from sim.runner import Runner
from spmoe.machine.cost import CostModel
from spmoe.policy.registry import recipe
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.summary import summarise

SETTINGS = CONFIG["offloading"]
BITS = 4.25
"""Of the cost model.  What matters is the bytes of an expert, and these are made to be those of the published model."""


@dataclass(frozen=True, slots=True)
class Row:
    """A published speed; `slots` per layer, `speed` in tokens per second."""

    variant: str
    gpu: str
    bits: int
    slots: int
    speed: float

    @property
    def left_out(self) -> bool:
        """Whether it is named as a probable misprint."""
        return [self.gpu, self.bits, self.variant] in SETTINGS["left_out"]


UNIT = 1e6
"""Points of the fit are logarithms of parameters in so many parts of their units."""

Fitted = tuple[float, float, float]
"""Link in GB/s, overhead of a layer in ms, cost of a submission in ms."""


def run(data: Path) -> dict[str, Any]:
    """Fit, predict, compare."""
    rows = [
        Row(
            one["variant"], one["gpu"], int(one["expert_bits"]), int(one["slots_per_layer"]), float(one["decode_tok_s"])
        )
        for one in published_speeds(data)
        if one["system"] == "mixtral-offloading"
    ]
    speed = _simulator(data)
    fitted = _fit([row for row in rows if row.bits == SETTINGS["fit_bits"] and not row.left_out], speed)
    table = [
        {
            "gpu": row.gpu,
            "bits": row.bits,
            "variant": row.variant,
            "policy": SETTINGS["policies"][row.variant],
            "published": row.speed,
            "ours": (ours := speed(row.gpu, row.bits, row.slots, row.variant, fitted[row.gpu])),
            "error": ours / row.speed - 1,
            "left_out": row.left_out,
        }
        for row in rows
    ]
    predicted = [one for one in table if one["bits"] == SETTINGS["predict_bits"] and not one["left_out"]]
    return {
        "fitted": {
            gpu: dict(zip(("link_gb_per_s", "layer_overhead_ms", "submission_ms"), values, strict=True))
            for gpu, values in fitted.items()
        },
        "rows": table,
        "median_error_fit": median(abs(one["error"]) for one in table if one["bits"] == SETTINGS["fit_bits"]),
        "median_error": median(abs(one["error"]) for one in predicted),
        "max_error": max(abs(one["error"]) for one in predicted),
        "order": {gpu: _same_order([one for one in predicted if one["gpu"] == gpu]) for gpu in SETTINGS["gpus"]},
    }


def _same_order(rows: list[dict[str, Any]]) -> bool:
    """Whether the variants of one GPU rank alike."""
    return sorted(rows, key=lambda one: one["published"]) == sorted(rows, key=lambda one: one["ours"])


def _simulator(data: Path) -> Any:
    """A function from GPU, bits, slots per layer, variant and parameters to tokens per second."""
    trace = real_trace(data)
    longest = summarise(trace).longest_request

    @cache
    def speed(gpu: str, bits: int, slots: int, variant: str, fitted: Fitted) -> float:
        link, overhead, submission = fitted
        hardware = machine(gpu, SETTINGS["gpus"][gpu], link_gb_per_s=link, layer_overhead_us=overhead * 1e3)
        layers = trace.header.model.layers
        setting = resolve_setting(
            trace.header,
            longest,
            RunOptions(hardware=hardware, bits=BITS, slots=slots * layers + SETTINGS["buffers"], gamma=0),
        )
        size = (SETTINGS["whole_model_gb"][str(bits)] - SETTINGS["dense_gb"]) * 1e9 / setting.geometry.keys
        model = replace(setting.geometry, expert_params=round(size * 8 / BITS))
        setting = replace(setting, geometry=model, cost=CostModel(model, hardware, BITS, setting.draft))
        one = recipe(SETTINGS["policies"][variant])
        one = replace(one, runtime=replace(one.runtime, submission_ns=round(submission * 1e6)))
        runner = Runner(trace, setting)
        tpot = runner.run(one, setting.configure(one)[0]).tpot_ms
        assert tpot is not None
        return 1000 / tpot

    return speed


def _fit(rows: list[Row], speed: Any) -> dict[str, Fitted]:
    """The parameters with the least squares of the logarithmic errors."""
    import numpy as np
    from scipy.optimize import least_squares

    gpus = list(dict.fromkeys(row.gpu for row in rows))
    own, shared = SETTINGS["fitted"]["per_gpu"], SETTINGS["fitted"]["shared"]
    limits = [own["link_gb_per_s"], own["layer_overhead_ms"]] * len(gpus) + [shared["submission_ms"]]

    # The optimiser's steps are a share of the point, which must not be 0 then: hence logarithms of large numbers.
    def packed(value: float) -> float:
        return log(value * UNIT)

    def unpack(point: Any) -> dict[str, Fitted]:
        values = [round(exp(value) / UNIT, 9) for value in point]
        return {gpu: (values[2 * i], values[2 * i + 1], values[-1]) for i, gpu in enumerate(gpus)}

    def errors(point: Any) -> Any:
        fitted = unpack(point)
        return np.array([log(speed(r.gpu, r.bits, r.slots, r.variant, fitted[r.gpu]) / r.speed) for r in rows])

    found = least_squares(
        errors,
        [packed(limit["start"]) for limit in limits],
        bounds=([packed(limit["low"]) for limit in limits], [packed(limit["high"]) for limit in limits]),
        diff_step=0.002,
        xtol=1e-4,
        ftol=1e-5,
    )
    return unpack(found.x)


def summary(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was checked, by which criterion, what came of it, and the verdict."""
    aim, order = SETTINGS["aim_median_error"], found["order"]
    return [
        (
            "speeds of mixtral-offloading, 3 bits, predicted",
            f"median error <= {aim:.0%}",
            f"{found['median_error']:.1%}",
            verdict(found["median_error"] <= aim),
        ),
        (
            "order of its variants",
            "right on every GPU",
            f"{sum(order.values())} of {len(order)}",
            verdict(all(order.values())),
        ),
    ]


def section(found: dict[str, Any]) -> str:
    """The section of the page, without its heading."""
    fitted = table(
        ("GPU", "link GB/s", "overhead per layer ms", "per swap ms"),
        (
            (gpu, f"{one['link_gb_per_s']:.1f}", f"{one['layer_overhead_ms']:.2f}", f"{one['submission_ms']:.2f}")
            for gpu, one in found["fitted"].items()
        ),
    )
    rows = table(
        ("GPU", "bits", "variant", "published tokens/s", "ours", "error", ""),
        (
            (
                one["gpu"],
                one["bits"],
                one["variant"],
                f"{one['published']:.3f}",
                f"{one['ours']:.3f}",
                f"{one['error']:+.1%}",
                "left out: probable misprint"
                if one["left_out"]
                else "fitted"
                if one["bits"] == SETTINGS["fit_bits"]
                else verdict(abs(one["error"]) <= SETTINGS["aim_median_error"]),
            )
            for one in sorted(found["rows"], key=lambda one: (one["bits"], list(found["fitted"]).index(one["gpu"])))
        ),
    )
    order = ", ".join(f"{gpu} {'right' if right else '**wrong**'}" for gpu, right in found["order"].items())
    return (
        "Link bandwidth and overhead per layer of each GPU, and one cost per swap (a submission to the link) for all "
        "of them, are fitted on the twelve 2-bit rows, by least squares of logarithmic errors with the simulator as "
        "the model; the 3-bit rows are predicted.  An expert's bytes follow from the published size of the whole model "
        f"less {SETTINGS['dense_gb']} GB.  Routing is real, next-gate forecasts are drawn at accuracy "
        f"{CONFIG['routing']['next_gate_accuracy']}.\n\n"
        f"{fitted}\n{rows}\n"
        f"Median error of the predicted rows {found['median_error']:.1%}, largest {found['max_error']:.1%} (of the "
        f"fitted rows: median {found['median_error_fit']:.1%}).  Order of the variants at 3 bits: {order}.\n"
    )
