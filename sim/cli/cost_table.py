"""The cost model, item by item."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spmoe.machine.units import format_ms
from spmoe.run.setting import Setting
from spmoe.scheduler.config import even_window


def show_cost(setting: Setting, out: Console) -> None:
    """The items of one layer of a full window, of a load and of a draft token."""
    window = setting.gamma + 1
    touched, tokens = even_window(setting.geometry, window)
    out.print(Text(f"{setting.geometry.name} on {setting.describe()}"), soft_wrap=True)
    out.print(
        Text(
            f"one layer for {window} tokens after {setting.longest_request:,}, with {round(touched)} experts of "
            f"{tokens} tokens each (what an even choice gives), all resident:"
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("item")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("from")
    for item in setting.cost.explain(window, setting.longest_request, (tokens,) * round(touched)):
        table.add_row(item.name, format_ms(item.ns), Text(item.formula))
    out.print(table)
