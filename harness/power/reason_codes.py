"""Reason codes of energy windows and the verdict that follows from them. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable

INFO, SUSPECT, INVALID = "valid", "suspect", "invalid"

EFFECT: dict[str, str] = {
    # two consecutive reads below an earlier one: driver reload, GPU reset, migration
    "COUNTER_RESET": INVALID,
    "GPU_LOST": INVALID,  # NVML answered 15 or 16
    "SAMPLER_DIED": INVALID,  # the sampler process ended inside the window
    "SAMPLER_GAP": INVALID,  # no readings near an edge, or for too much of the window
    # its 95 % interval is wider than the asked tolerance, or it holds under 3 ticks
    "WINDOW_TOO_SHORT": INVALID,
    "IMPLAUSIBLE": INVALID,  # more watts than 1.5 x the card's limit
    "FOREIGN_PROCESS": INVALID,  # a process that is not the run's own used the card
    # who else uses the card cannot be told: no process list, or another pid namespace
    "FOREIGN_UNKNOWN": INFO,
    "HW_THROTTLE": INVALID,  # the hardware slowed the clocks: heat or the power brake
    "SW_THERMAL": SUSPECT,  # the driver slowed the clocks because of heat
    "POWER_CAPPED": INFO,  # at the power limit: normal in training
    "POWER_LIMIT_CHANGED": INVALID,  # somebody set another power limit since the start
    "CLOCKS_CHANGED": INVALID,  # or other application clocks
    # steps keep time with the sensor: instant readings always see the same part of a step
    "PHASE_LOCK": SUSPECT,
    "NOT_STATIONARY": SUSPECT,  # power of the first and the last third differ by more than 3 %
    # the card is shared by MIG instances; joules are those of the whole card
    "MIG_WHOLE_CARD": INVALID,
    # energy counter against power readings, or a counter that stands still under load
    "SOURCES_DISAGREE": SUSPECT,
    "NO_COUNTER": INFO,  # no energy counter: power readings were integrated
    "INSTANT_ONLY": SUSPECT,  # integrated from readings that see a part of the time only
    "NO_SOURCE": INVALID,  # nothing to read
    "NO_PERMISSION": INVALID,
    "NO_DRIVER": INVALID,
    "UNCALIBRATED": INFO,  # the card's gain (about 5 %) was never checked against a reference
    # the wall clock was set; windows are on the monotonic clock and do not move
    "CLOCK_STEP": INFO,
    "NO_POWERCAP": INVALID,  # RAPL: no such zones (virtual machine, not x86)
    "PERMISSION": INVALID,  # RAPL: readable by root only
    "MASKED": INVALID,  # RAPL: hidden by the container
    "STUCK": INVALID,  # RAPL: the counter does not move
    "GAP": INVALID,  # RAPL: so long between two reads that the counter may have wrapped unseen
    "RESET": INVALID,  # RAPL: the counter went back and no wrap explains it
    "METER_FAILED": INVALID,  # a bug of the meter; the log has its traceback
}

_RANK = {INFO: 0, SUSPECT: 1, INVALID: 2}
SEVERITY = ("valid", "suspect", "invalid", "unmeasured")


def verdict(codes: Iterable[str]) -> str:
    """The worst effect among `codes`; "valid" without any. An unknown code is a KeyError: the table
    above is complete."""
    return max((EFFECT[c] for c in codes), key=_RANK.__getitem__, default=INFO)


def worst(verdicts: Iterable[str]) -> str:
    return max(verdicts, key=SEVERITY.index, default="valid")
