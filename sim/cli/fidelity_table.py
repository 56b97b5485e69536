"""The simulator's times beside the engine's."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.studies.fidelity import Fidelity


def show_fidelity(found: Fidelity, out: Console) -> None:
    """Every policy of every run, then what it comes to."""
    for run in found.runs():
        table = Table(box=None, pad_edge=False, header_style="bold", title=run.policies[0].run, title_justify="left")
        table.add_column("policy", no_wrap=True)
        for heading in ("predicted ms", "measured ms", "spread", "error"):
            table.add_column(heading, justify="right")
        for each in sorted(run.policies, key=lambda each: each.measured_tpot_ms):
            table.add_row(
                each.policy,
                f"{each.predicted_tpot_ms:,.2f}",
                f"{each.measured_tpot_ms:,.2f}",
                f"{each.spread:.1%}",
                f"{each.error:+.1%}",
            )
        out.print(table)
        out.print(Text(_fidelity(run)), soft_wrap=True)
    if len(list(found.runs())) > 1:
        out.print(Text(f"all runs: {_fidelity(found)}"), soft_wrap=True)


def _fidelity(found: Fidelity) -> str:
    worst, tau = found.worst, found.kendall_tau
    ranking = "no pair of policies differs by more than the spread" if tau is None else f"Kendall's tau {tau:.3f}"
    verdict = "as close as is asked for" if found.on_target else "not as close as is asked for"
    return (
        f"median error {found.median_error:.1%}, largest {found.max_error:.1%} ({worst.policy}), {ranking}: {verdict}"
    )
