"""Text tables on the standard output: aligned plain text in a pipe or a file, laid out by `rich` on
a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

MISSING = "-"
MIN_WRAPPED = 20  # columns of a terminal that a wrapped column needs to be readable


@dataclass(frozen=True)
class TextTable:
    """Rows of cells under optional headers; a cell that is None is missing.

    `align` has one letter per column, l or r; columns without a letter align left.
    """

    rows: Sequence[Sequence[str | None]]
    headers: Sequence[str] = ()
    align: str = ""

    def lines(self) -> list[list[str]]:
        """The headers and rows, with a mark in place of what is missing."""
        rows = [[MISSING if cell is None else cell for cell in row] for row in self.rows]
        return [list(self.headers), *rows] if self.headers else rows

    def widths(self) -> list[int]:
        """Characters of the widest cell of each column."""
        return [max(map(len, column)) for column in zip(*self.lines(), strict=True)]

    def sides(self) -> str:
        """`align` with a letter for each column."""
        return self.align.ljust(len(self.widths()), "l")

    def text(self) -> str:
        """The table as plain text of any width: two spaces between columns, no escape codes,
        nothing cut off.
        """
        widths, sides = self.widths(), self.sides()

        def padded(line: list[str]) -> str:
            columns = zip(line, widths, sides, strict=True)
            return "  ".join(cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in columns)

        return "\n".join(padded(line).rstrip() for line in self.lines())


def show(*parts: TextTable | str) -> None:
    """Print tables and lines.

    On a terminal, the last column of a table is wrapped where it does not fit.
    """
    if not sys.stdout.isatty():
        print("\n".join(part.text() if isinstance(part, TextTable) else part for part in parts))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(renderable(console.width, part), soft_wrap=True)


def renderable(width: int, *parts: TextTable | str) -> RenderableType:
    """Tables and lines as `rich` prints them on a terminal of `width` columns."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(part) if isinstance(part, str) else _grid(part, width) for part in parts))


def _grid(table: TextTable, width: int) -> RenderableType:
    """The table with its last column wrapped; as plain text if little room is left for that
    column.
    """
    import rich.table
    from rich.text import Text

    *fixed, last = table.widths()
    room = width - sum(fixed) - 2 * len(fixed)
    if room < min(last, MIN_WRAPPED):
        return Text(table.text())
    grid = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(table.headers))
    titles = table.headers or [""] * (len(fixed) + 1)
    for title, side, column_width in zip(titles, table.sides(), [*fixed, min(last, room)], strict=True):
        grid.add_column(title, justify="right" if side == "r" else "left", width=column_width, overflow="fold")
    for line in table.lines()[1 if table.headers else 0 :]:
        grid.add_row(*map(Text, line))
    return grid


def live(out: TextIO) -> Live:
    """A display that is redrawn in place by `live.update(renderable(width, ...), refresh=True)`;
    `out` is a terminal.
    """
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(file=out, highlight=False), auto_refresh=False)
