"""Prediction of points that the fit never saw, beside the naive line that any law has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.catalogue import law_of
from harness.laws.gram import Array
from harness.laws.predict import predict_interval
from harness.laws.result import Fit, HeldOut, Warn

MIN_STEP = 0.05  # in ln 6ND (or the law's own variable) between the two rungs of the naive line


def held_out(
    fit: Fit, table: Mapping[str, Array], y: Array, mask: NDArray[np.bool_], label: str | None
) -> tuple[HeldOut, list[Warn]]:
    """Compare `fit` (made on ~mask) with the rows in `mask`; `table` and `y` hold all rows.

    The interval is that of a new run (law and residual scatter). Warns where the naive line does
    better on average.
    """
    law = law_of(fit)
    out = {s: table[s][mask] for s in law.symbols}
    predicted, measured = law.value(fit.params, out), y[mask]
    if fit.draws:
        low, high = predict_interval(fit, out, new_run=True, force=True, extrapolate=True)
        interval = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    else:
        interval = []
    if not measured.all():
        raise FitError(
            f"hold_out: {law.y} is 0 in {int((measured == 0).sum())} held-out rows, so no relative error exists. Hold out "
            "rows where it was above 0."
        )
    error = predicted / measured - 1
    has_line = law.positive and not law.unit_range
    naive = [naive_line(law.symbols, table, y, ~mask, int(i)) if has_line else None for i in np.flatnonzero(mask)]
    naive_error = [None if v is None else v / m - 1 for v, m in zip(naive, measured.tolist(), strict=True)]
    if label is None:
        label = ", ".join(
            f"{s} {x.min():.3g}" + (f"-{x.max():.3g}" if x.max() > x.min() else "") for s, x in out.items()
        )
    result = HeldOut(label, predicted.tolist(), interval, measured.tolist(), error.tolist(), naive_error)
    pairs = [(abs(e), abs(n)) for e, n in zip(error.tolist(), naive_error, strict=True) if n is not None]
    if pairs and (law_miss := np.mean([p[0] for p in pairs])) > (line_miss := np.mean([p[1] for p in pairs])):
        message = (
            f"on the held-out rows the law misses by {law_miss:.2%}, the line through the last two rungs by "
            f"{line_miss:.2%}."
        )
        return result, [Warn("WORSE_THAN_LINE", message)]
    return result, []


def naive_line(
    symbols: Sequence[str], table: Mapping[str, Array], y: Array, fitted: NDArray[np.bool_], row: int
) -> float | None:
    """y at `row` from the log-log line through the last two rungs among the fitted rows; None where
    there are none below it.

    A rung is one value of the first symbol (N, C or J). With N and D, the line runs in ln 6ND
    through each rung's rows at the D nearest to the held-out one (at equal D: a line in ln N).
    Several rows at one place (seeds) enter with their mean ln y.
    """
    first = np.asarray(table[symbols[0]], dtype=np.float64)
    rungs = np.unique(first[fitted & (first < first[row] * (1 - 1e-9))])
    if len(rungs) < 2:
        return None
    by_d = tuple(symbols[:2]) == ("N", "D")
    log_d = np.log(np.asarray(table["D"], dtype=np.float64)) if by_d else np.zeros(len(y))
    axis = np.log(first) + log_d
    xs: list[float] = []
    ys: list[float] = []
    for rung in rungs[-2:]:
        rows = fitted & (first == rung)
        gap = np.where(rows, np.abs(log_d - log_d[row]), np.inf)
        rows = rows & (gap <= gap.min() + 1e-9)
        xs.append(float(axis[rows].mean()))
        ys.append(float(np.log(y[rows]).mean()))
    if xs[1] - xs[0] < MIN_STEP:  # rungs at about equal compute, as on isoFLOP grids, give no slope
        return None
    return float(np.exp(ys[1] + (ys[1] - ys[0]) / (xs[1] - xs[0]) * (axis[row] - xs[1])))
