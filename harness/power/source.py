"""What the sampler asks of a sensor. Standard library only, because the sampler process imports it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

OK = 0  # NVML_SUCCESS; the codes of other sources follow it: 0 is a good read
NO_VALUE = -1  # this card has no such reading at all, as opposed to a read that failed
READ_FAILED = 999  # a read that failed without a code of its own (NVML_ERROR_UNKNOWN)
GPU_GONE = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED


class Refused(Exception):
    """A sensor that cannot be used, as a reason code and a sentence that says what to do. Becomes `Meter.reason`."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


class Reading(NamedTuple):
    """One poll of one card, in the source's own units (`Source.energy_unit_j`, `power_unit_w`); None where a read failed."""

    energy: float | None  # cumulative counter
    instant: float | None  # power
    average: float | None  # power
    rc_energy: int
    rc_instant: int
    rc_average: int
    stamp_us: int | None  # the sensor's own time of the counter, microseconds since 1970, where it gives one


class Source(Protocol):
    """A sensor. `open` returns one JSON-able dict per card; `read` never raises for what the sensor does."""

    name: str  # nvml | rapl | replay
    counter: str  # "ticks": the counter moves in steps of its own. "points": every read is the value at that moment
    energy_unit_j: float
    power_unit_w: float

    def open(self) -> list[dict[str, Any]]:
        """Cards to meter, each with `uuid`, `name`, `limit_w`; raises Refused."""
        ...

    def read(self, card: int) -> Reading: ...

    def watch(self, card: int) -> dict[str, Any] | None:
        """What is looked at once a second (the fields of `watch.Look`, with `pids` instead of owners); None: nothing to watch."""
        ...

    def close(self) -> None: ...
