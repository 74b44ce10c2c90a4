"""What the sampler asks of a sensor. Standard library only, because the sampler process imports
it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

OK = 0  # NVML_SUCCESS; the codes of other sources follow it: 0 is a good read
NO_VALUE = -1  # this card has no such reading at all, as opposed to a read that failed
NO_PERMISSION = 4  # a read that was refused (NVML_ERROR_NO_PERMISSION)
READ_FAILED = 999  # a read that failed without a code of its own (NVML_ERROR_UNKNOWN)
GPU_GONE = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED


class Refused(Exception):
    """A sensor that cannot be used, as a reason code and a sentence that says what to do. Becomes
    `Meter.reason`."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


@dataclass(frozen=True)
class Card:
    """What a source meters as one (a GPU, a CPU package), and what its readings mean. The estimator
    knows a source by this alone.

    Stands in the header of each segment and in records: no field holds a local path.
    """

    uuid: str
    name: str
    label: str  # what records call its joules (`energy.source`)
    # "ticks": moves in steps of its own; "points": read at will; None: there is none
    counter: Literal["ticks", "points"] | None
    # what they are called where average power was integrated; None: as above
    average_label: str | None = None
    instant_label: str | None = None  # the same for instant power
    # instant power is that of a moment; False: it may be a mean over up to a second
    momentary: bool = True
    power_period_s: float = 0.1  # how often power readings change
    # enforced power limit; readings above 1.5 times this (None: above 5 kW) are garbage
    limit_w: float | None = None
    range_j: float | None = None  # the counter begins again at 0 there; None: it never does
    # with a range: more than it can draw, and the power that the time to a wrap is reckoned with
    max_w: float | None = None
    wrap_power_w: float | None = None
    codes: tuple[str, ...] = ()  # reason codes that hold for every window
    mig: bool = False  # shared by MIG instances
    driver: str | None = None
    # power known beforehand (`origin_ns`, `t_s`, `power_w`): joules are its exact integral
    trace: dict[str, Any] | None = None
    # whatever else records are to keep, JSON-able
    facts: dict[str, Any] = field(default_factory=dict)


class Reading(NamedTuple):
    """One poll of one card, in the source's own units (`Source.energy_unit_j`, `power_unit_w`).

    A quantity that a card does not have is None with `NO_VALUE`; one whose read failed is None with
    any other code but `OK`. Power of 0 W or less is taken for a failed read.
    """

    energy: float | None  # cumulative counter
    instant: float | None  # power at this moment
    average: float | None  # mean power over the time since the last update, or longer
    rc_energy: int
    rc_instant: int
    rc_average: int
    # the sensor's own time of the counter, microseconds since 1970, where it gives one
    stamp_us: int | None


class Source(Protocol):
    """A sensor of the power family. Its constructor takes settings, raises ConfigError where they
    are wrong, and asks no hardware."""

    @property
    def energy_unit_j(self) -> float:
        """Joules per unit of `Reading.energy`."""
        ...

    @property
    def power_unit_w(self) -> float:
        """Watts per unit of `Reading.instant` and `Reading.average`."""
        ...

    @property
    def period_s(self) -> float:
        """How often it is polled."""
        ...

    @property
    def boundary(self) -> str:
        """What the joules are of, in words that records keep."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether a card has one meter on this host at a time, as its joules cannot be told apart
        from another run's."""
        ...

    def open(self) -> list[Card]:
        """Cards to meter, added up; raises Refused, whose sentence goes into records."""
        ...

    def read(self, card: int) -> Reading:
        """One poll of the card at that place in `open`'s list, in milliseconds; raises nothing for
        what the sensor does."""
        ...

    def watch(self, card: int) -> dict[str, Any] | None:
        """What is looked at once a second: any fields of `interference.Look`, and `pids`, the
        processes on the card.

        None: there is nothing to watch, now or later. Raises nothing for what the sensor does.
        """
        ...

    def close(self) -> None:
        """Let go of what `open` took hold of."""
        ...
