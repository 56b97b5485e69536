"""The list of policies, or all parts of some."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.policies import details
from spmoe.policy.recipe import Recipe


def show_policies(policies: Sequence[Recipe], long: bool, out: Console) -> None:
    """A line per policy, or all parts of each."""
    if not long:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for one in policies:
            table.add_row(one.name, Text(one.summary))
        out.print(table)
        out.print(Text("(in full: --long, or names or patterns)"))
        return
    for number, one in enumerate(policies):
        if number:
            out.print()
        out.print(Text(one.name, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in details(one):
            table.add_row(f"  {label}", Text(text))
        out.print(table)
