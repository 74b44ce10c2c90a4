"""What one look a second at a card shows about a window: other processes, throttling, changed
settings. Pure.

A look holds what polls of power do not: the process list, the power limit and clock settings, the
mask of reasons for lower clocks, accumulated throttle times, temperatures. A window is judged by
the looks inside it and the one before it. A value that the card does not report is None, and no
code follows from it, except FOREIGN_UNKNOWN.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.units import S_PER_NS

# Bits of nvmlClocksEventReasons
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
HW_BITS = HW_SLOWDOWN | HW_THERMAL | HW_POWER_BRAKE
# Fields of accumulated throttle time, in the order in which a look holds them
THROTTLE_FIELDS = {"power_cap": 74, "thermal": 75, "sw_thermal": 269, "hw_thermal": 270, "hw_power_brake": 271}
STALE_S = 5.0  # without a look at the end of a window; above it other users of the card are unknown
MAX_SW_THERMAL_SHARE = 0.01  # of a window; above it software thermal slowdown is reported


@dataclass(frozen=True, slots=True)
class Look:
    """One look at one card; None where the card does not report a value."""

    t_s: float
    limit_w: float | None = None
    clock_setting_mhz: list[int] | None = None  # application clocks: graphics, memory
    sm_clock_mhz: int | None = None
    mask: int | None = None
    # in that order
    throttle_ns: list[int | None] = field(default_factory=lambda: [None] * len(THROTTLE_FIELDS))
    temp_c: int | None = None
    memory_temp_c: int | None = None
    # processes on the card that do not belong to the run; None: no process list
    foreign: list[int] | None = None
    hidden: int = 0  # processes whose owner cannot be seen from here (another pid namespace)

    @classmethod
    def of(cls, line: dict[str, Any], origin_ns: int) -> Look:
        values = {k: v for k, v in line.items() if k not in ("kind", "card", "mono_ns")}
        return cls(t_s=(line["mono_ns"] - origin_ns) * S_PER_NS, **values)


def judge(looks: Sequence[Look], start_s: float, end_s: float) -> list[tuple[str, str]]:
    """(code, evidence) pairs of the window from `start_s` to `end_s`, seconds of the segment."""
    first_inside = bisect_right(looks, start_s, key=_time)
    seen = looks[max(0, first_inside - 1) : bisect_right(looks, end_s, key=_time)]
    if not seen:
        return []
    out: list[tuple[str, str]] = []

    def report(code: str, where: Sequence[Look], evidence: str) -> None:
        span = (
            f"at {where[0].t_s - start_s:.3g} s"
            if len(where) == 1
            else f"{where[0].t_s - start_s:.3g} to {where[-1].t_s - start_s:.3g} s"
        )
        out.append((code, f"{code}: {len(where)} of {len(seen)} looks ({span} into the window), {evidence}"))

    if others := [x for x in seen if x.foreign]:
        pids = sorted({p for x in others for p in x.foreign or []})
        report("FOREIGN_PROCESS", others, f"process {', '.join(map(str, pids))} used the card too")
    elif unknown := [x for x in seen if x.foreign is None or x.hidden]:
        hidden = max(x.hidden for x in unknown)
        why = f"{hidden} processes of another pid namespace" if hidden else "the card gives no process list"
        report("FOREIGN_UNKNOWN", unknown, why)
    elif end_s - seen[-1].t_s > STALE_S:
        report("FOREIGN_UNKNOWN", seen[-1:], f"and no look in the {end_s - seen[-1].t_s:.3g} s before its end")
    first, last = seen[0], seen[-1]
    hot = [x for x in seen if (x.mask or 0) & HW_BITS]
    moved = [n for n in ("hw_thermal", "hw_power_brake") if _advance_ns(first, last, n) > 0]
    if hot or moved:
        masks = "mask " + ", ".join(sorted({f"{(x.mask or 0):#x}" for x in hot})) if hot else ""
        report(
            "HW_THROTTLE",
            hot or [last],
            "; ".join([*([masks] if masks else []), *(f"{n} time advanced" for n in moved)]),
        )
    warm = [x for x in seen if (x.mask or 0) & SW_THERMAL]
    share = _advance_ns(first, last, "sw_thermal") * S_PER_NS / max(end_s - start_s, 1e-9)
    if warm or share > MAX_SW_THERMAL_SHARE:
        report("SW_THERMAL", warm or [last], f"for {share:.1%} of the window by the card's own time")
    capped = [x for x in seen if (x.mask or 0) & SW_POWER_CAP]
    if capped:
        report("POWER_CAPPED", capped, f"at the power limit in {len(capped) / len(seen):.0%} of looks")
    for code, name, value in _SETTINGS:
        was = next((v for v in map(value, looks) if v is not None), None)
        changed = [x for x in seen if value(x) is not None and value(x) != was]
        if changed:
            report(code, changed, f"{name} {value(changed[0])} instead of {was} at the start")
    return out


_SETTINGS: tuple[tuple[str, str, Callable[[Look], Any]], ...] = (
    ("POWER_LIMIT_CHANGED", "power limit (W)", lambda x: x.limit_w),
    ("CLOCKS_CHANGED", "clock setting (MHz)", lambda x: x.clock_setting_mhz),
)


def _time(look: Look) -> float:
    return look.t_s


def _advance_ns(first: Look, last: Look, name: str) -> int:
    i = list(THROTTLE_FIELDS).index(name)
    a, b = first.throttle_ns[i], last.throttle_ns[i]
    return 0 if a is None or b is None else b - a


def phase_coverage(ticks: int, period_s: float, look_s: float, step_s: float) -> float:
    """Share of a step that instant readings see if every step takes `step_s`: the union of the
    looks modulo a step.

    `ticks` looks of `look_s` each, `period_s` apart. 1 where a look is as long as a step.
    """
    if look_s >= step_s:
        return 1.0
    phases = sorted((k * period_s) % step_s for k in range(ticks))
    gaps = [b - a for a, b in zip(phases, [*phases[1:], phases[0] + step_s], strict=True)]
    return sum(min(look_s, g) for g in gaps) / step_s


def owners(pids: Sequence[int], root_pid: int, proc: Path = Path("/proc")) -> tuple[list[int], int]:
    """Of the processes on a card: those that are no descendants of `root_pid`, and how many cannot
    be seen from here."""
    foreign, hidden = [], 0
    for pid in pids:
        chain, ancestor = set(), pid
        while ancestor not in chain and ancestor not in (0, root_pid):
            chain.add(ancestor)
            parent = _parent(ancestor, proc)
            if parent is None:
                break
            ancestor = parent
        if ancestor == root_pid:
            continue
        if _parent(pid, proc) is None:
            hidden += 1
        else:
            foreign.append(pid)
    return foreign, hidden


def _parent(pid: int, proc: Path) -> int | None:
    try:
        status = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return int(status.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # it ended before, or while, it was read
        return None
