"""CPU packages and DRAM through the kernel's powercap tree (RAPL). Standard library only.

Counted: package zones and their dram children. Never added: core and uncore (inside package), psys
(contains packages), the mmio twin of a package. Energy is that of the whole host, whoever uses it.
A counter wraps at `max_energy_range_uj`.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from harness.power.source import NO_VALUE, OK, READ_FAILED, Card, Reading, Refused
from harness.units import J_PER_UJ

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")  # AMD appears under the same name
_STUCK_S = 1.0
MAX_PACKAGE_W = 2000.0  # more than any package draws: a larger step of the counter is no energy
WRAP_POWER_W = 500.0  # power against which the time to a wrap is reckoned


class RaplSource:
    """One "card" per zone. Units: uJ as the kernel gives them."""

    energy_unit_j = J_PER_UJ
    power_unit_w = 1.0
    boundary = "cpu_pkg+dram of the whole host"
    exclusive = False  # the host's joules are not told apart at all

    def __init__(self, root: str, period_s: float = 1.0) -> None:
        self.root = Path(root)
        self.period_s = period_s
        self._files: list[Path] = []

    def open(self) -> list[Card]:
        zones = _zones(self.root)
        enable = f"sudo chmod a+r {self.root}/intel-rapl:*/energy_uj"
        self._files = [zone / "energy_uj" for zone, _ in zones]
        first = []
        for path in self._files:
            try:
                first.append(int(path.read_text()))
            except PermissionError as e:
                raise Refused(
                    "PERMISSION", f"{path} is readable by root only. Allow it until the next boot: {enable}"
                ) from e
            except (OSError, ValueError) as e:
                raise Refused(
                    "MASKED", f"{path} cannot be read ({e}). Container runtimes hide it: run on the host."
                ) from e
        end = time.monotonic() + _STUCK_S
        while [r.energy for r in map(self.read, range(len(first)))] == first:
            if time.monotonic() > end:
                raise Refused(
                    "STUCK",
                    f"no RAPL counter under {self.root} moved within {_STUCK_S:g} s; this host does not really have them.",
                )
            time.sleep(0.02)
        return [
            Card(
                zone.name,
                name,
                label="rapl",
                counter="points",
                range_j=_range_j(zone),
                max_w=MAX_PACKAGE_W,
                wrap_power_w=WRAP_POWER_W,
            )
            for zone, name in zones
        ]

    def read(self, card: int) -> Reading:
        try:
            return Reading(int(self._files[card].read_text()), None, None, OK, NO_VALUE, NO_VALUE, None)
        except (OSError, ValueError):
            return Reading(None, None, None, READ_FAILED, NO_VALUE, NO_VALUE, None)

    def watch(self, card: int) -> None:
        """Nothing to look at beside the counter."""

    def close(self) -> None:
        self._files = []


def probe(root: str = "/sys/class/powercap") -> dict[str, Any]:
    """What `harness doctor` prints: {zones: [{zone, name}], code, reason}; reason (with the command
    that helps) None if readable."""
    source = RaplSource(root)
    try:
        cards = source.open()
    except Refused as e:
        return {"zones": [], "code": e.code, "reason": e.reason}
    return {"zones": [{"zone": c.uuid, "name": c.name} for c in cards], "code": None, "reason": None}


def _zones(root: Path) -> list[tuple[Path, str]]:
    """Folders and names of the package zones and their dram children."""
    zones: list[tuple[Path, str]] = []
    hidden: list[str] = []
    entries = sorted(root.iterdir()) if root.is_dir() else []
    for zone in entries:
        if not _ZONE.fullmatch(zone.name):
            continue
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            hidden.append(zone.name)
            continue
        if name.startswith("package") or name == "dram":
            zones.append((zone, name))
    if not any(name.startswith("package") for _, name in zones):
        if hidden:
            raise Refused(
                "MASKED", f"{root}/{hidden[0]} is there but empty: the container hides RAPL. Run on the host."
            )
        raise Refused(
            "NO_POWERCAP",
            f"{root} has no package zone of intel-rapl: a virtual machine, another kind of CPU, or the module is not loaded"
            " (sudo modprobe intel_rapl_msr).",
        )
    return zones


def _range_j(zone: Path) -> float | None:
    try:
        return int((zone / "max_energy_range_uj").read_text()) * J_PER_UJ
    except (OSError, ValueError):
        return None
