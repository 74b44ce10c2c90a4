"""A recorded power trace played back as a sensor: for tests and demonstrations. Standard library
only."""

from __future__ import annotations

import csv
import math
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.power.source import NO_VALUE, OK, READ_FAILED, Card, Reading
from harness.units import S_PER_NS


@dataclass(frozen=True)
class PowerTrace:
    """Power (W) at rising times (s), straight lines between; `joule` is its integral from the first
    time (trapezoids: exact)."""

    t_s: tuple[float, ...]
    power_w: tuple[float, ...]
    joule: tuple[float, ...]

    @classmethod
    def of(cls, t_s: list[float], power_w: list[float]) -> PowerTrace:
        joule = [0.0]
        for i in range(1, len(t_s)):
            joule.append(joule[-1] + 0.5 * (power_w[i - 1] + power_w[i]) * (t_s[i] - t_s[i - 1]))
        return cls(tuple(t_s), tuple(power_w), tuple(joule))

    def power_at(self, t: float) -> float | None:
        """Watts at `t`; None outside the trace: nothing was recorded there."""
        if not self.t_s[0] <= t <= self.t_s[-1]:
            return None
        i = min(bisect_right(self.t_s, t), len(self.t_s) - 1)
        x = (t - self.t_s[i - 1]) / (self.t_s[i] - self.t_s[i - 1])
        return self.power_w[i - 1] + x * (self.power_w[i] - self.power_w[i - 1])

    def energy_to(self, t: float) -> float | None:
        """Joules from the trace's beginning to `t`; None outside the trace."""
        power = self.power_at(t)
        if power is None:
            return None
        i = min(bisect_right(self.t_s, t), len(self.t_s) - 1) - 1
        return self.joule[i] + 0.5 * (self.power_w[i] + power) * (t - self.t_s[i])


def load(path: Path) -> PowerTrace:
    """Read a CSV with the columns t_s, power_w. Raises ConfigError naming file, line and what is
    wrong."""
    where = f"power.path={str(path)!r}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file. Give a CSV with the columns t_s (s, rising) and power_w (W).")
    t_s: list[float] = []
    power_w: list[float] = []
    with path.open(newline="", encoding="utf-8") as f:
        rows = csv.DictReader(f)
        missing = {"t_s", "power_w"} - set(rows.fieldnames or [])
        if missing:
            raise ConfigError(
                f"{where}: no column {', '.join(sorted(missing))}; found {rows.fieldnames}. Needed: t_s, power_w."
            )
        for row in rows:
            at = f"{where} line {rows.line_num}"
            try:
                t, power = float(row["t_s"]), float(row["power_w"])
            except (TypeError, ValueError) as e:
                raise ConfigError(f"{at}: t_s={row['t_s']!r}, power_w={row['power_w']!r} are not two numbers.") from e
            if not (math.isfinite(t) and math.isfinite(power) and power >= 0):
                raise ConfigError(f"{at}: t_s={t:g}, power_w={power:g} must be finite, the power not negative.")
            if t_s and t <= t_s[-1]:
                raise ConfigError(
                    f"{at}: t_s={t:g} does not rise above {t_s[-1]:g}, the row before. Sort the trace by time."
                )
            t_s.append(t)
            power_w.append(power)
    if len(t_s) < 2:
        raise ConfigError(f"{where}: {len(t_s)} rows; a trace needs at least 2.")
    return PowerTrace.of(t_s, power_w)


class ReplaySource:
    """Plays the trace from `origin_ns` (CLOCK_MONOTONIC): the trace's first time is then. Units: J,
    W."""

    energy_unit_j = 1.0
    power_unit_w = 1.0
    period_s = 0.1
    boundary = "replay"
    exclusive = False

    def __init__(self, path: str, origin_ns: int) -> None:
        self._name = Path(path).name
        self._trace = load(Path(path))
        self._origin_ns = origin_ns

    def open(self) -> list[Card]:
        trace = {"origin_ns": self._origin_ns, "t_s": self._trace.t_s, "power_w": self._trace.power_w}
        return [Card("replay", self._name, label="replay", counter="points", trace=trace)]

    def read(self, card: int) -> Reading:
        t = self._trace.t_s[0] + (time.monotonic_ns() - self._origin_ns) * S_PER_NS
        energy, power = self._trace.energy_to(t), self._trace.power_at(t)
        rc = OK if energy is not None else READ_FAILED
        return Reading(energy, power, None, rc, rc, NO_VALUE, None)

    def watch(self, card: int) -> None:
        """Nothing to look at beside the counter."""

    def close(self) -> None:
        """Nothing is held."""
