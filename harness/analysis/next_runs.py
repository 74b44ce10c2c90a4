"""Which runs would narrow the interval of a prediction most per joule.

Where joules were not measured, the runs are chosen per FLOP.

With parameters estimated to a covariance H^-1, the variance of a prediction with gradient g is
g'H^-1 g. One more run with gradient h and noise sigma makes it g'(H + h h'/sigma^2)^-1 g =
g'H^-1 g - (g'H^-1 h)^2 / (sigma^2 + h'H^-1 h). All three products are covariances of predictions,
so they are taken over the fit's bootstrap draws, of ln L at the target and at each candidate: the
law is not linearised, and the intervals are those that the fit reports. Each choice updates the
covariances in the same way, so the second run is chosen with the first one in mind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness import laws
from harness.analysis.costs import Costs
from harness.analysis.optimal import outside
from harness.errors import FitError
from harness.laws.catalogue import law_of
from harness.laws.estimators import Z95
from harness.laws.gram import Array
from harness.laws.result import Fit

PER_AXIS = 16  # candidates in N and in D
MIN_SHRINK = 0.05
TARGET_FACTOR = 10.0  # the default target: ten times the largest compute that the fit has seen
MAX_COST_RATIO = 2.0  # of a candidate to the largest run fitted


@dataclass
class Target:
    """The prediction to sharpen; `width` is half its 95 % interval, as a share of the loss."""

    n: float
    d: float
    flop: float
    loss_nat: float
    width: float
    decades_outside: float


@dataclass
class NextRun:
    """A proposed run; `width` is half the target's interval after it and the runs before it."""

    n: float
    d: float
    flop: float
    joules: float | None
    seconds: float | None
    width: float
    shrink: float  # share by which this run alone narrows the interval
    note: str | None = None


@dataclass
class Plan:
    """`runs` in the order to do them; `strongest` alone narrows the interval most at any cost."""

    target: Target
    runs: list[NextRun]
    strongest: NextRun


def target_at(fit: Fit, costs: Costs, flop: float | None, *, extrapolate: bool = False) -> Target:
    """The best run for `flop` FLOP; by default for ten times the largest compute fitted."""
    if law_of(fit).questions != "run":
        raise FitError(
            f"--next plans runs in N and D, and needs law chinchilla or another of N and D; this fit is {fit.law}. Fit such a law."
        )
    if not fit.draws:
        raise FitError("--next needs bootstrap draws, and this fit has none. Fit again with --bootstrap 1000.")
    if flop is None:
        flop = TARGET_FACTOR * fit.span["C"][1]
    best = laws.frontier(fit, [flop], costs.flop_per_token, extrapolate=extrapolate)
    n, d = float(best.N[0]), float(best.D[0])
    spread = _log_losses(fit, best.N, best.D)[:, 0].std(ddof=1)
    return Target(n, d, flop, float(best.L[0]), Z95 * float(spread), outside(fit, 6 * n * d))


def plan_next(fit: Fit, costs: Costs, target: Target, count: int, min_shrink: float = MIN_SHRINK) -> Plan:
    """Choose `count` runs greedily.

    Each is the one with the largest reduction of variance per joule (per FLOP where joules are
    unknown) among the candidates that narrow the target's interval by `min_shrink` or more. Without
    this threshold the cheapest run always wins by a hair. Where no candidate reaches it, the run
    that narrows most is taken, and its note says so. The noise of a run is the residual scatter of
    the fit.

    Raises FitError where no candidate can be run, or where the draws give the target no interval.
    """
    n, d, cost = _candidates(fit, costs, target)
    draws = _log_losses(fit, np.append(n, target.n), np.append(d, target.d))
    cov = np.cov(draws, rowvar=False)  # candidates, then the target
    if cov[-1, -1] <= 0:
        raise FitError("the draws of this fit agree on the target exactly: there is no interval to narrow.")
    dof = max(fit.n_points - (len(fit.params) - len(fit.fixed)), 1)
    noise = fit.residual_rms**2 * fit.n_points / dof

    def gains() -> tuple[Array, Array]:
        """The reduction of the target's variance by each candidate, and of its interval (share)."""
        gain = cov[-1, :-1] ** 2 / (noise + np.diag(cov)[:-1])
        return gain, 1 - np.sqrt(np.maximum(cov[-1, -1] - gain, 0.0) / cov[-1, -1])

    gain, shrink = gains()
    k = int(gain.argmax())
    strongest = _proposal(costs, n[k], d[k], target.width * (1 - float(shrink[k])), float(shrink[k]))
    runs: list[NextRun] = []
    for _ in range(count):
        gain, shrink = gains()
        enough = shrink >= min_shrink
        k = int(np.where(enough, gain / cost, -1.0).argmax() if enough.any() else gain.argmax())
        notes = [] if enough.any() else [f"no candidate narrows the interval by {min_shrink:.0%}; this one does most"]
        if any((record.n, record.d) == (float(n[k]), float(d[k])) for record in runs):
            notes.append("the same run with another seed")
        cov = cov - np.outer(cov[:, k], cov[k]) / (noise + cov[k, k])
        width = Z95 * float(np.sqrt(max(cov[-1, -1], 0.0)))
        runs.append(_proposal(costs, n[k], d[k], width, float(shrink[k]), "; ".join(notes) or None))
    return Plan(target, runs, strongest)


def _candidates(fit: Fit, costs: Costs, target: Target) -> tuple[Array, Array, Array]:
    """N, D and cost (joules, else FLOP) of the candidate runs, each (m,).

    A log grid over the N and D of the data and twice as far, at most twice the compute of the
    largest run and at most that of the target.
    """
    sizes = [np.geomspace(fit.span[s][0], 2 * fit.span[s][1], PER_AXIS) for s in ("N", "D")]
    n, d = (m.ravel() for m in np.meshgrid(*sizes, indexing="ij"))
    cost = costs.flop(n, d) if costs.j_per_flop is None else costs.joules(n, d)
    allowed = np.isfinite(cost) & (6 * n * d <= min(MAX_COST_RATIO * fit.span["C"][1], 6 * target.n * target.d))
    if not allowed.any():
        raise FitError(
            "no candidate run has a known cost within the limit: the target lies below every run of the data."
        )
    return n[allowed], d[allowed], cost[allowed]


def _proposal(costs: Costs, n: float, d: float, width: float, shrink: float, note: str | None = None) -> NextRun:
    size, tokens = np.array([n]), np.array([d])
    joules, seconds = float(costs.joules(size, tokens)[0]), float(costs.seconds(size, tokens)[0])
    return NextRun(
        n=float(n),
        d=float(d),
        flop=float(costs.flop(size, tokens)[0]),
        joules=joules if np.isfinite(joules) else None,
        seconds=seconds if np.isfinite(seconds) else None,
        width=width,
        shrink=shrink,
        note=note,
    )


def _log_losses(fit: Fit, n: Array, d: Array) -> Array:
    """ln L of every draw (R) at every (N, D) (m): (R, m)."""
    p = {k: np.asarray(fit.draws.get(k, [v]), dtype=float)[:, None] for k, v in fit.params.items()}
    return np.log(law_of(fit).value(p, {"N": n, "D": d}))
