"""Constants, conversions and human formatting. Units are converted once, at the driver's edge."""

from __future__ import annotations

import math

J_PER_KWH = 3.6e6
J_PER_MJ = 1e-3  # NVML energy counter: millijoule
W_PER_MW = 1e-3  # NVML power: milliwatt
J_PER_UJ = 1e-6  # RAPL energy: microjoule
S_PER_NS = 1e-9
NS_PER_MS = 1e6
NAT_PER_BIT = math.log(2.0)

_SI = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]


def si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """`si(3.1e9, "FLOP") == "3.1 GFLOP"`; `None` is shown as an en dash, small values in plain
    form.
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".strip()
    for scale, prefix in _SI:
        if abs(value) >= scale:
            return f"{value / scale:.{digits}g} {prefix}{unit}".strip()
    return f"{value:.{digits}g} {unit}".strip()


def counted(count: int, noun: str) -> str:
    """`counted(1, "run") == "1 run"`, `counted(2, "run") == "2 runs"`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float | None) -> str:
    """`duration(3725) == "1 h 02 min"`; `None` is "unknown"."""
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def sci(value: float | None, digits: int = 3) -> str:
    """`sci(12345) == "1.23e4"`, the form that the command line accepts again."""
    if value is None:
        return "–"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
