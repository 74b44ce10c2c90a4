"""Resampling: what would the parameters have been, had the noise fallen otherwise?

Rows of one trunk share weights and data order, so the independent unit (*block*) is the trunk;
where seeds give several trunks per rung, it is the rung, because lack of fit of a rung is shared by
its seeds and must count once. Methods:

`cases`     Blocks are drawn whole, with replacement. Reflects everything that makes one block
            differ from another, lack of fit included, but needs many blocks: of 6 rungs, one draw
            keeps about 4. Default from 20 blocks up; the method of the published Chinchilla re-fit
            (arXiv:2404.10102).
`residual`  The design is kept and new losses are drawn around the fitted law, with two errors as in
            a split-plot analysis: one shared by a block (variance from the block means of the
            residuals) and one per row (residuals about their block mean, resampled). Each variance
            is divided by its own residual degrees of freedom and scaled per draw by nu/chi2_nu,
            which makes the intervals as wide as Student's t does. Default below 20 blocks. Reflects
            seed noise and lack of fit as far as they differ between blocks or between rows.
`seeds`     Trunks are drawn with replacement within their rung, so that no rung vanishes. Reflects
            seed noise ALONE: narrower than the truth wherever the law does not fit exactly. Needs
            two trunks in every rung.

No method sees a misfit common to all blocks, such as a wrong form in D. `scripts/bench/coverage`
measures how often the intervals hold the truth: 0.92-0.99 with `residual` on 5-6 rungs (100 ladders
each), 0.71-0.84 for E and alpha where the seeds of a rung are taken for independent evidence
against lack of fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.gram import Array, Column, jacobian
from harness.laws.solver.bound import BoundLaw
from harness.laws.solver.solve import AGREEMENT_TOLERANCE, Solution, minimise

METHODS = ("auto", "residual", "cases", "seeds")
MIN_CASE_BLOCKS = 20  # blocks
# Newton decrement over objective of one draw; anything above counts as failed
DRAW_TOLERANCE = 1e-8
# draws at random that get a cold start too: none better of 100 means fewer than 3 % in all, at 95 %
AUDIT_DRAWS = 100
TAIL_SHARE = 0.025  # share of draws, the farthest from the others, that get one
# Student's 97.5 % point at one degree of freedom: no draw inflates the noise further
MAX_T_FACTOR = 12.7


@dataclass
class Draws:
    theta: Array  # (converged draws, p), solver coordinates
    method: str
    blocks: int
    counts: dict[str, int]  # draws, failed, seed, cold_starts, cold_better
    # residual method: degrees of freedom of the noise shared by a block; None without shared blocks
    between_dof: float | None


@dataclass
class Refits:
    """R refitted data sets: `theta` (R, p), `objective` and `decrement` (R,); how many also had a
    cold start, and how many of those ended more than 1e-6 lower from it."""

    theta: Array
    objective: Array
    decrement: Array
    cold: int
    improved: int

    def counts(self, seed: int) -> dict[str, int]:
        """What a fit's `bootstrap` says; `failed` draws have no certificate and are left out of
        intervals."""
        failed = int((self.decrement > DRAW_TOLERANCE).sum())
        return {
            "draws": len(self.theta),
            "failed": failed,
            "seed": seed,
            "cold_starts": self.cold,
            "cold_better": self.improved,
        }


def labels(values: Column | None, n: int) -> NDArray[np.intp]:
    """Any labels -> 0..G-1; None: every row its own."""
    return np.arange(n) if values is None else np.unique(np.asarray(values), return_inverse=True)[1]


def resample(
    bound: BoundLaw,
    theta: Array,
    delta: float,
    draws: int,
    seed: int,
    cluster: Column | None = None,
    strata: Column | None = None,
    method: str = "auto",
) -> Draws:
    """Refit `draws` resampled data sets from `theta` (p,), the optimum of the data (see `refit`).

    `cluster` names the trunk of each row (None: every row its own), `strata` the rung; see above
    for `method`. Its 8 parameters are those of the fit that is repeated.
    """
    rng = np.random.default_rng(seed)
    trunk = labels(cluster, bound.n)
    block = labels(strata, bound.n) if strata is not None else trunk
    units = int(block.max()) + 1
    if method == "auto":
        method = "cases" if units >= MIN_CASE_BLOCKS else "residual"
    target, weight, dof = (
        np.broadcast_to(bound.target, (draws, bound.n)),
        np.broadcast_to(bound.weight, (draws, bound.n)),
        None,
    )
    if method == "residual":
        target, dof = draw_residuals(bound, theta, block, draws, rng)
    elif method == "cases":
        weight = draw_cases([np.arange(units)], block, bound, draws, rng) * bound.weight
    else:
        groups = [np.unique(trunk[block == b]) for b in range(units)]
        if min(len(g) for g in groups) < 2:
            raise FitError("method='seeds' needs at least two trunks (seeds) in every rung. Use method='residual'.")
        weight, units = draw_cases(groups, trunk, bound, draws, rng) * bound.weight, int(trunk.max()) + 1
    refits = refit(bound, theta, target, weight, delta, seed)
    good = refits.decrement <= DRAW_TOLERANCE
    return Draws(refits.theta[good], method, units, refits.counts(seed), dof)


def refit(bound: BoundLaw, theta: Array, target: Array, weight: Array, delta: float, seed: int = 0) -> Refits:
    """The optimum of each data set (R, n), warm from `theta` (p,), the optimum of the data.

    A cold start as well, and the better of the two, is given to draws without a certificate, to the
    `TAIL_SHARE` farthest from the others (they decide the ends of intervals, and another valley
    shows there first) and to `AUDIT_DRAWS` at random. If one of the random ones ends lower from the
    cold start, all draws get one.
    """
    count = len(target)
    best = minimise(bound, np.repeat(theta[None], count, axis=0), target, weight, delta, tolerance=1e-11)
    doubtful = best.decrement > DRAW_TOLERANCE
    doubtful[np.argsort(_distance(best.theta))[count - math.ceil(TAIL_SHARE * count) :]] = True
    audit = np.random.default_rng(seed).permutation(count)[:AUDIT_DRAWS]
    doubtful[audit] = True
    improved = np.zeros(count, dtype=bool)
    improved[doubtful] = _try_cold(bound, best, np.flatnonzero(doubtful), target, weight, delta)
    if improved[audit].any() and not doubtful.all():
        improved[~doubtful] = _try_cold(bound, best, np.flatnonzero(~doubtful), target, weight, delta)
        doubtful[:] = True
    # a few creep along a curved valley
    if (slow := np.flatnonzero(best.decrement > DRAW_TOLERANCE)).size:
        best.put(slow, minimise(bound, best.theta[slow], target[slow], weight[slow], delta, 500, tolerance=1e-11))
    return Refits(best.theta, best.objective, best.decrement, int(doubtful.sum()), int(improved.sum()))


def _try_cold(
    bound: BoundLaw, best: Solution, rows: NDArray[np.intp], target: Array, weight: Array, delta: float
) -> NDArray[np.bool_]:
    """Cold starts for some draws, put into `best` where they end lower; which of them did, by more
    than `AGREEMENT_TOLERANCE`."""
    target, weight, before = target[rows], weight[rows], best.objective[rows]
    start = bound.cold_start(target, weight, per_axis=8)
    rough = minimise(bound, start, target, weight, 5 * delta, max_iterations=30, tolerance=1e-6)
    cold = minimise(bound, rough.theta, target, weight, delta, tolerance=1e-11)
    lower = cold.objective < before
    best.put(rows[lower], cold.at(lower))
    return cold.objective < before * (1 - AGREEMENT_TOLERANCE)


def _distance(theta: Array) -> Array:
    """Mahalanobis distance, squared, of each vector (R, p) from their mean."""
    x: Array = theta - theta.mean(0)
    covariance: Array = x.T @ x / len(x)
    spread = np.linalg.pinv(covariance, hermitian=True)
    return np.einsum("ri,ij,rj->r", x, spread, x)


def draw_cases(
    groups: list[NDArray[np.intp]], unit: NDArray[np.intp], bound: BoundLaw, draws: int, rng: np.random.Generator
) -> Array:
    """How often each row is drawn, (draws, n): whole units with replacement, as many as there are,
    within each group.

    A draw with no more rows than free parameters, or with fewer than three distinct values of a
    power term's variable, has no fit and is drawn again (at most 1000 times, then kept and left to
    fail).
    """
    need = int(bound.free.sum()) + 1
    out = np.empty((draws, bound.n))
    for d in range(draws):
        for _ in range(1000):
            picks = np.concatenate([rng.choice(g, len(g)) for g in groups])
            out[d] = np.bincount(picks, minlength=unit.max() + 1)[unit]
            rows = out[d] > 0
            if rows.sum() >= need and bound.distinct(rows) >= 3:
                break
    return out


def draw_residuals(
    bound: BoundLaw, theta: Array, block: NDArray[np.intp], draws: int, rng: np.random.Generator
) -> tuple[Array, float | None]:
    """New targets (draws, n) around the fitted law, with noise shared by a block and noise per row;
    and the former's dof.
    """
    value, factors = bound.factors(theta[None])
    root = np.sqrt(bound.weight)
    jac = jacobian(factors)[0][:, bound.free] * root[:, None]
    jac = jac[:, np.abs(jac).max(0) > 0]
    n = bound.n
    basis, spectrum, _ = np.linalg.svd(jac / np.abs(jac).max(0), full_matrices=False)
    basis = basis[:, spectrum > 1e-10 * spectrum[0]]
    left = np.eye(n) - basis @ basis.T  # projects on what the parameters cannot absorb
    residual = left @ ((value[0] - bound.target) * root)
    size = np.bincount(block)
    shared = size.max() > 1
    share = np.zeros((n, len(size)))
    if shared:
        share[np.arange(n), block] = 1 / np.sqrt(size[block])
    within = residual - share @ (share.T @ residual)
    inner = left - left @ share @ share.T
    row_dof = max(float(np.trace(inner)) ** 2 / max(float(np.trace(inner @ inner)), 1e-12), 1.0)
    row_sd = np.sqrt((within**2).sum() / max(float(np.trace(inner)), 1.0))
    spread = np.sqrt((within**2).mean())
    pool = within / spread if spread > 0 else within
    noise = rng.choice(pool, (draws, n))
    if shared:
        noise = (noise - (noise @ share) @ share.T) / np.sqrt(1 - len(size) / n)
    noise *= (row_sd * t_factor(row_dof, draws, rng))[:, None]
    dof: float | None = None
    if shared:
        covariance = share.T @ left @ share
        trace = float(np.trace(covariance))
        dof = trace**2 / max(float((covariance * covariance).sum()), 1e-12)
        # With under half a degree of freedom the block means say nothing (the parameters absorb
        # them): rows stand in
        mean_square = ((share.T @ residual) ** 2).sum() / trace if trace > 0.5 else row_sd**2
        factor = np.sqrt(mean_square) * t_factor(max(dof, 1.0), draws, rng)
        noise += (rng.normal(size=(draws, len(size))) * factor[:, None]) @ share.T
        dof = dof if trace > 0.5 else 0.0
    return value[0] - noise / root, dof


def t_factor(dof: float, draws: int, rng: np.random.Generator) -> Array:
    """sqrt(nu / chi2_nu): a normal times this is Student's t with nu degrees of freedom."""
    return np.minimum(np.sqrt(dof / rng.chisquare(dof, draws)), MAX_T_FACTOR)
