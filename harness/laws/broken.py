"""When a broken power law (Caballero et al. 2022, arXiv:2210.14891) may be offered instead of
L = E + A C^-g.

Six parameters follow almost anything, so the rule is strict: at least four points on each side of
the bend, and an AICc (Hurvich & Tsai 1989) lower by ten or more. Both laws are fitted by least
squares of the log for this comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.errors import FitError
from harness.laws.fitting import fit
from harness.laws.result import Fit
from harness.laws.table import Table

MIN_PER_SIDE = 4
MIN_GAIN = 10.0  # of AICc
LEAST_SQUARES = 1e3  # Huber's delta beyond any log residual


@dataclass
class Offer:
    broken: Fit | None  # None unless the rule offers it
    straight: Fit
    # AICc of the straight law minus that of the broken one; None where either is undefined
    gain: float | None
    reason: str


def offer(table: Table, *, bootstrap: int = 0, seed: int = 0) -> Offer:
    """Fit both laws to the columns C and loss, and offer the broken one only where the rule allows
    it."""
    straight = fit("loss_compute", table, delta=LEAST_SQUARES, bootstrap=bootstrap, seed=seed)
    try:
        broken = fit("broken", table, delta=LEAST_SQUARES, bootstrap=bootstrap, seed=seed)
    except FitError as e:
        return Offer(None, straight, None, f"no broken law: {e}")
    bend, c = broken.params["x1"], np.asarray(table["C"], dtype=np.float64)
    below, above = int((c < bend).sum()), int((c > bend).sum())
    straight_aicc, broken_aicc = aicc(straight), aicc(broken)
    gain = None if straight_aicc is None or broken_aicc is None else straight_aicc - broken_aicc
    if gain is None:
        return Offer(None, straight, None, f"no broken law: {len(c)} points are too few for its AICc, 9 are needed")
    if not broken.certificate.passed:
        return Offer(None, straight, gain, f"no broken law: {broken.certificate.reason}")
    if min(below, above) < MIN_PER_SIDE:
        why = f"{below} points below its bend at C={bend:.3g} and {above} above, {MIN_PER_SIDE} are needed on each side"
        return Offer(None, straight, gain, f"no broken law: {why}")
    if gain < MIN_GAIN:
        return Offer(None, straight, gain, f"no broken law: AICc improves by {gain:.1f}, {MIN_GAIN:g} are needed")
    return Offer(broken, straight, gain, f"broken law: AICc improves by {gain:.1f}, bend at C={bend:.3g}")


def aicc(f: Fit) -> float | None:
    """n ln(SSE/n) + 2k + 2k(k+1)/(n-k-1), k counting the noise; None where n <= k + 1."""
    n, k = f.n_points, len(f.params) - len(f.fixed) + 1
    if n <= k + 1:
        return None
    mean_square = max(f.residual_rms**2, 1e-24)
    return float(n * np.log(mean_square) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
