"""A machine and a pair of models as a profile: what a study measured, in the form that the simulator reads."""

from __future__ import annotations

import datetime
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from engine.memory.host_store import available_memory
from engine.profiling.calibration import GAMMA, Calibration
from engine.profiling.fit import Median, fit_landings, fit_layers, medians, microseconds, middle, usual_ratio
from engine.profiling.kernel_bench import arithmetic, memory_bandwidth
from engine.profiling.step_timings import Span, StepTimings
from spmoe.machine.roofline import Roofline
from spmoe.machine.units import GIB
from spmoe.policy.registry import recipe as find_recipe

_LEAST: Final = 0.001


class Profile:
    """Fits the readings of a study."""

    def __init__(self, study: Calibration) -> None:
        """At least one turn of it."""
        self._study = study
        seen = study.subject.bench.device.type == "cpu"
        kernels = {tokens: each.ns for tokens, each in study.kernels.items()}
        self._layers = fit_layers(study.resident.spans, kernels, seen)
        base = {tokens: each.ns for tokens, each in self._layers.base.items()}
        drafts: dict[int, list[int]] = defaultdict(list)
        for token in study.resident.drafts:
            drafts[token.read].append(token.ns)
        self._drafts = medians(drafts)
        entries = study.resident.entries
        self._entry = max(0.0, middle([ns - base[n] for n, each in entries.items() if n in base for ns in each]))
        tails: dict[int, list[float]] = defaultdict(list)
        for span in study.resident.tails:
            tails[span.tokens].append(span.ns - self._layers.of(span))
        self._rounds = {tokens: Median.of(each) for tokens, each in sorted(tails.items()) if tokens in base}
        self._landings = fit_landings(study.landing.spans, self._layers, seen, self._deciding(study.landing, GAMMA))
        self._host = medians(study.on_host.host)

    def document(self, name: str, link: str = "") -> dict[str, Any]:
        """As a file holds it; `link` says in words where the link is not the machine's own."""
        study, subject = self._study, self._study.subject
        bench, line = subject.bench, self._study.link.line
        device, bits = bench.device, 8 * bench.dtype.itemsize
        bandwidth, flops = memory_bandwidth(device), arithmetic(device, bench.dtype)
        rates = (bits, round(bandwidth), round(flops))
        first = min(self._layers.base)
        dense = Roofline(subject.model.dense_params, *rates, parts=bench.shape.layers).ns(first)
        expert_bytes = subject.model.expert_params * bits / 8
        return {
            "name": name,
            "kind": "measured",
            "source": _source(study) + link,
            "link": {
                "bandwidth_gb_per_s": _positive(1 / line.slope, 4),
                "latency_us": _positive(line.start / 1e3),
                "copy_us": _positive(study.link.copy_ns / 1e3),
            },
            "gpu": {
                "memory_gib": _positive(_memory(device) / GIB),
                "bandwidth_gb_per_s": _positive(bandwidth / 1e9),
                "tflops": _positive(flops / 1e12, 5),
                "layer_overhead_us": _positive((self._layers.base[first].ns - dense) / 1e3),
                "expert_overhead_us": _positive(
                    (self._layers.expert[1] - Roofline(subject.model.expert_params, *rates).ns(1)) / 1e3
                ),
            },
            "draft": {
                "model": subject.draft.name,
                "token_ms": _positive(self._drafts[min(self._drafts)].ns / 1e6, 5),
                "params": max(1, subject.draft.active_params),
                "layers": bench.weights.draft.config.get_text_config().num_hidden_layers,
                "bits": bits,
            },
            "cpu": {
                "name": _processor(),
                "cores": torch.get_num_threads(),
                "bandwidth_gb_per_s": _positive(expert_bytes / self._host[min(self._host)].ns),
                "gflops": max(1, round(arithmetic(torch.device("cpu"), torch.float32) / 1e9)),
            },
            "timings": self._timings(),
            "measured": self._readings(),
        }

    def _timings(self) -> dict[str, Any]:
        study, layers = self._study, self._layers
        subject = study.subject
        return {
            "model": subject.model.name,
            "draft": subject.draft.name,
            "bits": 8 * subject.bench.dtype.itemsize,
            "layer": _points({tokens: max(0.0, each.ns) for tokens, each in layers.base.items()}),
            "entry_us": microseconds(self._entry),
            "expert": _points(layers.expert),
            "round": _points({tokens: max(0.0, each.ns) for tokens, each in self._rounds.items()}),
            "draft_token": _points({read: each.ns for read, each in self._drafts.items()}),
            "forecast_us": microseconds(self._forecast),
            "landing_us": microseconds(self._landings.each),
            "cold_us": microseconds(self._landings.cold),
            "draft_landing_us": microseconds(self._draft_landing),
            "result_us": microseconds(self._result),
            "notice_us": microseconds(max(0.0, middle(study.landing.notices))),
            "next_gate": _points(self._more(study.readback_gate)),
            "gates": _points(self._more(study.readback_weights)),
            "decisions_us": {
                policy: microseconds(max(0.0, middle(each) - self._simplest(_drafted(policy))))
                for policy, each in study.decisions.items()
            },
            "host_expert": _points({tokens: each.ns for tokens, each in self._host.items()}),
            "handover_us": microseconds(max(0.0, middle(study.on_host.handovers))),
            "transfer": round(self._transfer(), 4),
            "jitter": round(self._jitter(), 4),
        }

    @property
    def _forecast(self) -> float:
        """What forecasts for one layer add to a draft token."""
        tokens = [each for each in self._study.forecasting.drafts if each.read == 1 and each.forecasts]
        more = middle([each.ns for each in tokens]) - self._drafts[1].ns
        return max(0.0, more / tokens[0].forecasts) if tokens else 0.0

    @property
    def _draft_landing(self) -> float:
        """What an arrival adds to the draft token in which it comes."""
        tokens = [each for each in self._study.prefetching.drafts if each.read == 1 and each.landed]
        return max(
            0.0,
            middle([(each.ns - self._drafts[1].ns - each.forecasts * self._forecast) / each.landed for each in tokens]),
        )

    @property
    def _result(self) -> float:
        """What a result of the CPU adds, in layers that compute nothing else."""
        spans = [span for span in self._study.on_host.spans if span.results and not span.experts]
        return max(0.0, middle([span.computing / span.results for span in spans]))

    def _transfer(self) -> float:
        """By what factor loads take longer beside a run, on average, than the line of transfers alone says."""
        study = self._study
        load_ns = study.subject.bench.layout.size * study.link.line.slope
        return max(1.0, usual_ratio([(ns, loads * load_ns) for ns, loads in study.landing.transfers]))

    def _simplest(self, gamma: int) -> float:
        """What the simplest scheduler takes per layer where it has nothing to load: it is part of a layer's time."""
        return middle(self._study.resident.deciding[gamma])

    def _deciding(self, times: StepTimings, gamma: int) -> float:
        """What the scheduler takes more per layer than that in these rounds of `gamma` drafted tokens."""
        return middle(times.deciding[gamma]) - self._simplest(gamma)

    def _more(self, readback: StepTimings) -> dict[int, float]:
        """What a layer takes more, by its tokens, in these rounds, in which nothing has to be loaded, and which the
        decisions do not explain."""
        more: dict[int, list[float]] = defaultdict(list)
        for span in readback.spans:
            if span.tokens in self._layers.base and not (span.landed or span.seen):
                deciding = self._deciding(readback, 0 if span.tokens == 1 else GAMMA)
                more[span.tokens].append(span.ns - self._layers.base[span.tokens].ns - self._layers.of(span) - deciding)
        return {tokens: max(0.0, each.ns) for tokens, each in medians(more).items()} or {1: 0.0}

    def _jitter(self) -> float:
        """By how much longer all that was timed took than its medians: readings have a tail to one side."""
        layers, times = self._layers, self._study.resident
        pairs = [(span.ns, self._layers.base[span.tokens].ns + layers.of(span)) for span in self._based(times.spans)]
        pairs += [(span.ns, self._rounds[span.tokens].ns + layers.of(span)) for span in self._based(times.tails)]
        pairs += [
            (ns, layers.base[tokens].ns + self._entry)
            for tokens, each in times.entries.items()
            if tokens in layers.base
            for ns in each
        ]
        pairs += [(each.ns, self._drafts[each.read].ns) for each in times.drafts if each.read in self._drafts]
        return usual_ratio(pairs)

    def _based(self, spans: Sequence[Span]) -> list[Span]:
        """Those of whose tokens there were enough."""
        return [span for span in spans if span.tokens in self._layers.base]

    def _readings(self) -> dict[str, Any]:
        """What the figures come from, with quartiles."""
        study = self._study
        return {
            "layer": _list(self._layers.base),
            "layer_off_the_fit": self._layers.off.to_json(),
            "expert_alone": _list(study.kernels),
            "round": _list(self._rounds),
            "draft_token": _list(self._drafts),
            "landing_off_the_fit": self._landings.off.to_json(),
            "notice": Median.of(study.landing.notices or [0]).to_json(),
            "host_expert": _list(self._host),
            "host_expert_alone_by_threads": [
                {"threads": count, "experts": _list(each)} for count, each in study.host.items()
            ],
            "scheduler_per_layer": {policy: Median.of(each).to_json() for policy, each in study.decisions.items()},
            "link": study.link.to_json(),
        }


def _drafted(policy: str) -> int:
    """Tokens drafted in a round by a policy, as readings tell them apart."""
    return GAMMA if find_recipe(policy).speculation.gamma(GAMMA) else 0


def _source(study: Calibration) -> str:
    bench, model = study.subject.bench, study.subject.model
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else _processor()
    kind = f"{str(bench.dtype).removeprefix('torch.')} on {bench.device.type}"
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    threads = torch.get_num_threads()
    return (
        f"engine profile, {when}: {model.name} with random weights, {kind} ({where}), torch {torch.__version__}, "
        f"{threads} {'thread' if threads == 1 else 'threads'}"
    )


def _points(points: Mapping[int, float]) -> list[dict[str, float]]:
    return [{"tokens": number, "us": microseconds(ns)} for number, ns in sorted(points.items())]


def _list(found: Mapping[int, Median]) -> list[dict[str, Any]]:
    return [{"tokens": count, **each.to_json()} for count, each in sorted(found.items())]


def _positive(value: float, digits: int = 3) -> float:
    """Figures of a machine are above zero: what comes out as zero is too small to tell."""
    return max(_LEAST, round(value, digits))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory() or GIB


def _processor() -> str:
    return platform.processor() or platform.machine()
