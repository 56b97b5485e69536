"""What a trace holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.console import number
from spmoe.trace.schema import Header
from spmoe.trace.summary import TraceSummary


def show_summary(header: Header, summary: TraceSummary, out: Console) -> None:
    """What a trace holds."""
    model, source = header.model, header.source
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = [
        ("model", f"{model.name}: {model.layers} MoE layers of {model.experts} experts, top-{model.top_k}"),
        ("draft", header.draft.name if header.draft else "none"),
        ("source", f"{source.kind}: {source.what}{f' ({source.when})' if source.when else ''}"),
        ("how", source.how),
        (
            "tokens",
            f"{summary.tokens:,} in {summary.requests:,} requests, {summary.prefills:,} of them with a prefill line",
        ),
        ("longest request", f"{summary.longest_request:,} tokens, prompt included"),
        ("agreement", f"{summary.agreement:.1%} of the draft's next tokens"),
        ("missing cells", f"{summary.empty_cells:,} of {summary.tokens * model.layers:,} (token, layer)"),
        ("experts used", f"{summary.distinct_experts:.1f} of {model.experts} per layer"),
        ("rejected inputs", f"{summary.rejected_inputs:,} recorded"),
    ]
    for name, forecast in summary.forecasts.items():
        right = number(forecast.first_rank_accuracy, ".1%")
        kind = header.forecasts[name].kind
        rows.append(
            (f"forecast {name}", f"{kind}; for {forecast.coverage:.0%} of the cells, first expert right {right}")
        )
    for label, text in rows:
        table.add_row(label, Text(text))
    out.print(table)
