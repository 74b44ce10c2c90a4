"""What an evaluation spends: windows of its spend.jsonl, and what an attempt that was killed could
not book.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.power.meter import Meter
from harness.records import SpendRow, append_row
from harness.ttc import work_units
from harness.units import S_PER_NS


@dataclass(frozen=True)
class Books:
    """The ledger of one attempt."""

    folder: Path
    attempt: int
    meter: Meter
    sync: Callable[[], None]

    @contextlib.contextmanager
    def window(self, branch: str) -> Iterator[SpendRow]:
        """One window of spend.jsonl, booked however it ends; the block adds tokens and FLOP to the
        row.
        """
        began_ns = time.monotonic_ns()
        row = SpendRow(self.attempt, "ttc", branch, 0, 0, 0, 0.0, 0.0, began_ns)
        try:
            yield row
        finally:
            self.sync()
            row.t_b_ns = time.monotonic_ns()
            row.wall_s = (row.t_b_ns - began_ns) * S_PER_NS
            row.energy, row.limit_w = self.meter.energy(began_ns, row.t_b_ns), self.meter.limit_w()
            append_row(self.folder / "spend.jsonl", row)

    def book_lost(self) -> None:
        """Book, once, what the attempt before spent after its last booked window: killed, it could
        not do so itself.
        """
        before = self.attempt - 1
        path = self.folder / "spend.jsonl"
        rows = [r for r in records.read_rows(path, SpendRow) if r.attempt == before]
        if any(r.phase == "lost" for r in rows):
            return
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a line torn by the kill
            whole = path.read_bytes()
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        booked_ns = max((r.t_b_ns for r in rows), default=0)
        lost = SpendRow(before, "lost", "", 0, 0, 0, 0.0, 0.0, booked_ns, booked_ns)
        for file in sorted(self.folder.glob("*/blocks/*.npz")):
            block = work_units.read(file)
            if int(block["attempt"]) == before and int(block["t_b_ns"]) > booked_ns:
                lost.tokens += int(block["tokens"])
                lost.flop += float(block["spent_flop"])
                lost.wall_s += (int(block["t_b_ns"]) - int(block["t_a_ns"])) * S_PER_NS
        lost.energy = self.meter.recover(before, booked_ns)
        lost.limit_w = max(
            (r.limit_w for r in rows if r.limit_w), default=None
        )  # this attempt's meter has not started yet
        if lost.flop or lost.energy.energy_j:
            append_row(path, lost)
