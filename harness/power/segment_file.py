"""Segments: the append-only files that a sampler writes and a meter reads. Standard library only.

One file per life of a sampler, JSON lines. The first is the header (an object: source, boot id,
cards, units, period). An array is one poll of one card (`Row`); an object with `kind` is anything
else (ready, refused, stats, watch, event, anchor, end). A poll is written when a value or a status
differs from the card's last row, when it came late, and as a heartbeat; so between two rows of a
card nothing changed, and `prev_ns` tells when that was last seen. A torn last line (killed while
writing) is dropped and counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from harness.power.source import OK, Card, Reading

SEGMENT_SCHEMA = 2  # 1: cards without `label` and `counter`
# a row at least this often, so that a flat reading still shows that it was read
HEARTBEAT_NS = 250_000_000


class Row(NamedTuple):
    """One written poll. Times are CLOCK_MONOTONIC; values are in the header's units, None where the
    read failed."""

    seq: int  # 1, 2, 3 … per card: a hole means a lost row
    card: int
    t0_ns: int  # before the call
    t1_ns: int  # after it
    prev_ns: int  # midpoint of this card's poll before this one; its own midpoint for the first
    energy: float | None
    instant: float | None
    average: float | None
    rc_energy: int
    rc_instant: int
    rc_average: int
    stamp_us: int | None

    @property
    def mid_ns(self) -> int:
        return (self.t0_ns + self.t1_ns) // 2


def boot_id() -> str:
    """Identity of this boot of the host: CLOCK_MONOTONIC times are comparable within it only. Empty
    where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def path_of(folder: Path, attempt: int, index: int) -> Path:
    return folder / f"a{attempt:03d}.s{index}.jsonl"


def find(folder: Path, attempt: int | None = None) -> list[Path]:
    """Segment files of one attempt (None: of all), in order of their making."""
    pattern = "a*.s*.jsonl" if attempt is None else f"a{attempt:03d}.s*.jsonl"
    return sorted(folder.glob(pattern), key=lambda p: [int(part[1:]) for part in p.name.split(".")[:2]])


def card_json(card: Card) -> dict[str, Any]:
    """A card as headers and records hold it: its facts beside its fields."""
    value = dataclasses.asdict(card)
    return {**value.pop("facts"), **value}


def card_of(header: dict[str, Any], index: int) -> Card:
    """The card at that place in a header, of this schema or the one before."""
    value = {**_of_schema_1(header, header["cards"][index]), **header["cards"][index]}
    names = {f.name for f in dataclasses.fields(Card)} - {"facts"}
    known, facts = ({k: v for k, v in value.items() if (k in names) is own} for own in (True, False))
    return Card(**{**known, "codes": tuple(known.get("codes", ()))}, facts=facts)


def _of_schema_1(header: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """What a card of the first schema said otherwise: one kind of counter for all, and only GPUs
    told what they support."""
    if "label" in card:
        return {}
    name, support = header["source"], card.get("support")
    if support is None:
        return {"label": name, "counter": header["counter"]}
    single = card.get("power_call") == "nvmlDeviceGetPowerUsage"
    return {
        "label": f"{name}-counter",
        "counter": header["counter"] if support["energy"] == OK else None,
        "average_label": f"{name}-average",
        "instant_label": f"{name}-power-usage" if single else f"{name}-instant",
        "momentary": not single,
        "codes": ("UNCALIBRATED",),
    }


class Recorder:
    """Decides which polls become rows. Pure: the sampler feeds it real polls, tests feed it
    scripted ones."""

    def __init__(self, late_ns: int, heartbeat_ns: int = HEARTBEAT_NS) -> None:
        self.late_ns = late_ns  # a poll this long after the one before is written whatever it says
        self.heartbeat_ns = heartbeat_ns
        self._seq: dict[int, int] = {}
        # card -> reading and midpoint of its last row
        self._last: dict[int, tuple[Reading, int]] = {}
        self._prev: dict[int, int] = {}  # card -> midpoint of its last poll

    def offer(self, card: int, t0_ns: int, t1_ns: int, reading: Reading) -> Row | None:
        mid = (t0_ns + t1_ns) // 2
        prev = self._prev.get(card, mid)
        self._prev[card] = mid
        if card in self._last:
            last, written = self._last[card]
            # The sensor's own stamp may move with every call; it alone is no change.
            same = reading[:6] == last[:6]
            if same and mid - prev < self.late_ns and mid - written < self.heartbeat_ns:
                return None
        self._last[card] = (reading, mid)
        self._seq[card] = self._seq.get(card, 0) + 1
        return Row(self._seq[card], card, t0_ns, t1_ns, prev, *reading)


class Writer:
    """Appends JSON lines to a new file, each batch in one write. Failures (disk full) are counted,
    never raised."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._torn = False
        self.lost_lines = 0

    def put(self, *lines: object) -> None:
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        if self._torn:
            data = b"\n" + data  # close the line that an earlier failure cut short
        try:
            self._torn = os.write(self._fd, data) < len(data)
        except OSError:
            self._torn = True
        if self._torn:
            self.lost_lines += len(lines)

    def close(self) -> None:
        os.close(self._fd)


class SegmentReader:
    """Reads a segment while it grows: `poll` returns the new rows; objects go to their
    attributes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.ready = False
        self.refused: dict[str, Any] | None = None
        self.stats: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self._looks: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        self.damaged = 0  # whole lines that are no JSON
        self._offset = 0
        self._rest = b""

    @property
    def torn(self) -> bool:
        """Whether what was read so far ends inside a line."""
        return bool(self._rest)

    def poll(self) -> list[Row]:
        try:
            with self.path.open("rb") as f:
                f.seek(self._offset)
                data = f.read()
        # not made yet, or a network disk that is away: what is there is read next time
        except OSError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        rows: list[Row] = []
        for line in lines:
            if not line:
                continue
            try:
                value = json.loads(line)
                if isinstance(value, list):
                    rows.append(Row(*value))
                else:
                    self._take(value)
            except (ValueError, TypeError, KeyError):
                self.damaged += 1
        return rows

    def take_looks(self) -> list[dict[str, Any]]:
        """Looks read since the last call; they are not kept here, a run of weeks has millions."""
        taken, self._looks = self._looks, []
        return taken

    def _take(self, value: dict[str, Any]) -> None:
        kind = value["kind"]
        if kind == "header":
            self.header = value
        elif kind == "ready":
            self.ready = True
        elif kind == "refused":
            self.refused = value
        elif kind == "stats":
            self.stats = value
        elif kind == "watch":
            self._looks.append(value)
        elif kind == "event":
            self.events.append(value)
        elif kind == "end":
            self.end = value
