"""The third noun: a Fit, what the records say. A plain dataclass that reads and writes JSON."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

from harness.errors import FitError
from harness.laws.law import Law


@dataclass
class Certificate:
    """Why the optimum may be believed. `passed` is false for an unconverged fit, and predictions
    from it raise."""

    passed: bool
    newton_decrement: float  # 0.5 g' H^-1 g / objective, H the weighted Gauss-Newton Hessian
    gradient_norm: float
    starts: int
    starts_agreeing: int  # distinct starts that ended within 1e-6 (relative) of the best objective
    condition: float  # of the scaled Hessian
    at_bound: list[str] = field(default_factory=list[str])
    solver: str = ""
    reason: str | None = None  # why `passed` is false


@dataclass
class Warn:
    code: str  # e.g. E_NOT_PINNED, AT_BOUND, FEW_DEGREES, DELTA_SENSITIVE
    message: str


@dataclass
class HeldOut:
    """A prediction for points that the fit never saw."""

    label: str  # which points, e.g. "width 128"
    predicted: list[float]
    interval: list[list[float]]  # 95 %
    measured: list[float]
    relative_error: list[float]  # predicted / measured - 1
    # the log-log line through the last two rungs, same points
    naive_relative_error: list[float | None]

    @property
    def inside(self) -> int | None:
        """How many measured values lie in their interval; None without intervals."""
        if not self.interval:
            return None
        return sum(low <= m <= high for (low, high), m in zip(self.interval, self.measured, strict=True))


@dataclass
class Fit:
    """One law fitted to one table. Numbers keep 17 digits; predictions come from the object, never
    from printed text."""

    law: str
    formula: str
    params: dict[str, float]  # the law's own symbols: A, B, E, alpha, beta ...
    interval: dict[str, list[float]]  # 95 %, same keys; bootstrap percentiles
    derived: dict[str, float]
    derived_interval: dict[str, list[float]]
    objective: float  # sum of Huber terms, unscaled
    delta: float
    residual_rms: float  # of log residuals
    n_points: int
    n_clusters: int  # independent units resampled by the bootstrap (trunks)
    certificate: Certificate
    identified: dict[str, bool]
    warnings: list[Warn] = field(default_factory=list[Warn])
    excluded: dict[str, int] = field(default_factory=dict[str, int])  # reason -> rows
    held_out: HeldOut | None = None
    fixed: dict[str, float] = field(default_factory=dict[str, float])  # parameters not fitted
    columns: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # symbol -> column, with the convention (N -> n_total)
    # symbol -> [min, max] of the data
    span: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    # draws, failed, seed, cold_starts, cold_better
    bootstrap: dict[str, int] = field(default_factory=dict[str, int])
    # what the bootstrap drew: cases, residual or seeds; None without one, and in older files
    resampled: str | None = None
    draws: dict[str, list[float]] = field(
        default_factory=dict[str, list[float]]
    )  # bootstrap parameters, for prediction intervals
    # ln predicted - ln measured, in row order
    residuals: list[float] = field(default_factory=list[float])
    data_hash: str = ""
    # What the table is of: a study, one control of its evaluations, or one cell
    scope: Literal["study", "control", "cell"] = "study"

    def __post_init__(self) -> None:
        self.own_law: Law | None = None  # of a caller's function; never stored

    def with_law(self, law: Law) -> Fit:
        """A copy that predicts with `law`, for a fit of a caller's function that was read from a
        file. FitError where the names of the law or of its parameters differ."""
        if law.name != self.law or set(law.params) != set(self.params):
            raise FitError(
                f"law {law.name} with {', '.join(law.params)} is not the one fitted: {self.law} with {', '.join(self.params)}. Build "
                "the law as it was for the fit."
            )
        out = copy.copy(self)
        out.own_law = law
        return out
