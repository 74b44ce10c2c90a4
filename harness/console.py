"""Text tables on the standard output: aligned plain text in a pipe or a file, laid out by `rich` on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells under optional headers. `align` has one letter per column, l or r; columns without one align left."""

    rows: Sequence[Sequence[str]]
    headers: Sequence[str] = ()
    align: str = ""

    def text(self) -> str:
        """The table as plain text of any width: two spaces between columns, no escape codes, nothing cut off."""
        lines = [*([self.headers] if self.headers else []), *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = self.align.ljust(len(widths), "l")

        def padded(cells: Sequence[str]) -> str:
            columns = zip(cells, widths, sides, strict=True)
            return "  ".join(cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in columns)

        return "\n".join(padded(cells).rstrip() for cells in lines)


def show(*parts: Table | str) -> None:
    """Print tables and lines. On a terminal, cells that do not fit are wrapped inside their column."""
    if not sys.stdout.isatty():
        print("\n".join(part.text() if isinstance(part, Table) else part for part in parts))
        return
    import rich.console
    import rich.table
    import rich.text

    console = rich.console.Console(highlight=False)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
            continue
        grid = rich.table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(part.headers))
        for i, side in enumerate(part.align.ljust(len([*part.headers] or part.rows[0]), "l")):
            title = part.headers[i] if part.headers else ""
            grid.add_column(title, justify="right" if side == "r" else "left", overflow="fold")
        for cells in part.rows:
            grid.add_row(*map(rich.text.Text, cells))
        console.print(grid)
