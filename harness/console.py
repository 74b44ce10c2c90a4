"""Text tables on the standard output: aligned plain text in a pipe or a file, laid out by `rich` on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Rows of cells under optional headers; a cell that is None is missing.

    `align` has one letter per column, l or r; columns without a letter align left.
    """

    rows: Sequence[Sequence[str | None]]
    headers: Sequence[str] = ()
    align: str = ""

    def cells(self) -> list[list[str]]:
        """The rows, with a mark in place of what is missing."""
        return [[MISSING if cell is None else cell for cell in row] for row in self.rows]

    def sides(self, columns: int) -> str:
        """`align` with a letter for each column."""
        return self.align.ljust(columns, "l")

    def text(self) -> str:
        """The table as plain text of any width: two spaces between columns, no escape codes, nothing cut off."""
        lines = [*([list(self.headers)] if self.headers else []), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = self.sides(len(widths))

        def padded(line: list[str]) -> str:
            columns = zip(line, widths, sides, strict=True)
            return "  ".join(cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in columns)

        return "\n".join(padded(line).rstrip() for line in lines)


def show(*parts: Table | str) -> None:
    """Print tables and lines. On a terminal, cells that do not fit are wrapped inside their column."""
    if not sys.stdout.isatty():
        print("\n".join(part.text() if isinstance(part, Table) else part for part in parts))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(renderable(part), soft_wrap=isinstance(part, str))


def renderable(*parts: Table | str) -> RenderableType:
    """Tables and lines as `rich` prints them."""
    import rich.table
    from rich.console import Group
    from rich.text import Text

    out: list[RenderableType] = []
    for part in parts:
        if isinstance(part, str):
            out.append(Text(part))
            continue
        grid = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(part.headers))
        lines = part.cells()
        titles = part.headers or [""] * len(lines[0])
        for title, side in zip(titles, part.sides(len(titles)), strict=True):
            grid.add_column(title, justify="right" if side == "r" else "left", overflow="fold")
        for line in lines:
            grid.add_row(*map(Text, line))
        out.append(grid)
    return out[0] if len(out) == 1 else Group(*out)


def live(out: TextIO) -> Live:
    """A display that is redrawn in place by `live.update(renderable(...), refresh=True)`; `out` is a terminal."""
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(file=out, highlight=False), auto_refresh=False)
