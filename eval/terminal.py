"""What evaluations print: the console, and tables that are as wide as their titles."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table


def open_console() -> Console:
    """Standard output, wide where it is a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


def titled_table(title: str, caption: str | None = None) -> Table:
    """A table without columns, in which its title has room on one line."""
    return Table(title=title, caption=caption, min_width=cell_len(title))
