"""Parameters: as a caller states one (`Parameter`), and as the solver sees it (`Coordinate`, a
number of order one)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harness.errors import FitError

Kind = Literal["coefficient", "exponent", "floor", "scale", "level"]
KINDS: tuple[Kind, ...] = ("coefficient", "exponent", "floor", "scale", "level")
EXPONENT_BOUNDS = (0.005, 5.0)
# ln of a power term's size at the centre of the data, relative to the mean of y
LOG_SHARE_BOUNDS = (-25.0, 25.0)
START_FACTOR = 30.0  # a positive parameter is started within this factor of its `start`
MAX_LOG_RANGE = 60.0  # how far ln of a parameter without bounds may move from ln `start`


@dataclass(frozen=True)
class Coordinate:
    """A parameter and its solver coordinate q.

    log: q = ln value, else value / `unit`. `share`: the parameter is an amount of y, so ln y's mean
    is subtracted (or y's mean divides it). `anchor` (exponent, symbol, factor): for a coefficient
    of x^exponent, q = ln coef + factor exponent mean(ln x), its term's size at the centre of the
    data. `centre`: a place on the axis of that symbol, so the symbol's mean is subtracted. `low`,
    `high` bound q; starts are drawn from `start`. kind: what is judged of it afterwards: exponent,
    floor, coefficient, scale (a place or a decay) or level.
    """

    name: str
    low: float
    high: float
    start: tuple[float, float]
    kind: Kind = "coefficient"
    log: bool = True
    share: bool = False
    anchor: tuple[str, str, float] | None = None
    centre: str | None = None
    unit: float = 1.0

    @property
    def limits(self) -> tuple[float, float]:
        """The bounds of the parameter itself, where its coordinate does not depend on the data."""
        return (math.exp(self.low), math.exp(self.high)) if self.log else (self.low * self.unit, self.high * self.unit)


def exponent(name: str, start: tuple[float, float] = (0.03, 1.2)) -> Coordinate:
    """An exponent of a power term."""
    return Coordinate(name, *EXPONENT_BOUNDS, start, "exponent", log=False)


def floor(name: str = "E") -> Coordinate:
    """What is left of y at infinity, started between 0 and the mean of y."""
    return Coordinate(name, 0.0, 1e3, (0.0, 1.0), "floor", log=False, share=True)


def term(name: str, exponent: str, symbol: str, factor: float = -1.0) -> Coordinate:
    """The coefficient of symbol^(factor exponent)."""
    return Coordinate(name, *LOG_SHARE_BOUNDS, (-4.0, 1.0), log=True, share=True, anchor=(exponent, symbol, factor))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a caller's law, in its own unit.

    start      where the search begins: a number (a positive parameter is tried within a factor of
               30, one of any sign within three times its size), or a pair, the range that starts
               are drawn from.
    low, high  bounds; None for none. With `low` of 0 or more the logarithm is fitted, so the
               parameter stays above 0, except that a floor may be 0.
    kind       how its interval is judged: an `exponent` (a factor of 3 is too wide), a
               `coefficient` (a factor of 10), a `floor` of y, a `scale` (bounded on both sides or
               not), a `level` of y.
    """

    start: float | tuple[float, float]
    low: float | None = None
    high: float | None = None
    kind: Kind = "coefficient"

    def coordinate(self, name: str) -> Coordinate:
        """The solver's coordinate. FitError for bounds, starts and kinds that contradict each
        other."""
        starts = self.start if isinstance(self.start, tuple) else (self.start, self.start)
        numbers = [v for v in (*starts, self.low, self.high) if v is not None]
        if len(starts) != 2 or not all(math.isfinite(v) for v in numbers):
            raise FitError(
                f"parameter {name}: start={self.start!r}, low={self.low!r}, high={self.high!r} are not all finite numbers, and no "
                "search begins or ends at infinity. Give numbers, and None for no bound."
            )
        lowest = 0.0 if self.kind == "floor" else -math.inf
        low, high = (lowest if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if not low < high:
            raise FitError(
                f"parameter {name}: low={low:g} is not below high={high:g}, so nothing is left to fit. Swap them, or give the "
                f"value as fixed={{{name!r}: {high:g}}}."
            )
        if not low <= starts[0] <= starts[1] <= high:
            raise FitError(
                f"parameter {name}: start={self.start!r} is not inside the bounds {low:g} to {high:g}, from low to high. Give a start "
                "between them, or wider bounds."
            )
        if self.kind not in KINDS:
            raise FitError(
                f"parameter {name}: kind={self.kind!r} is unknown, so its interval cannot be judged. Choose one of: "
                f"{', '.join(KINDS)}."
            )
        if self.kind == "floor" and low < 0:
            raise FitError(
                f"parameter {name}: low={self.low!r} lets a floor of y fall below 0. Give low=0, or kind='level'."
            )
        if low >= 0 and starts[0] > 0 and self.kind != "floor":
            centre, width = [math.log(v) for v in starts], math.log(START_FACTOR) if starts[0] == starts[1] else 0.0
            q_low = math.log(low) if low > 0 else centre[0] - MAX_LOG_RANGE
            q_high = math.log(high) if high < math.inf else centre[1] + MAX_LOG_RANGE
            box = max(q_low, centre[0] - width), min(q_high, centre[1] + width)
            return Coordinate(name, q_low, q_high, box, self.kind)
        unit = max(abs(starts[0]), abs(starts[1])) or 1.0
        width = 3 * unit if starts[0] == starts[1] else 0.0
        box = max(low, starts[0] - width) / unit, min(high, starts[1] + width) / unit
        return Coordinate(name, low / unit, high / unit, box, self.kind, log=False, unit=unit)
