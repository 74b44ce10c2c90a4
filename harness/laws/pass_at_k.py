"""pass@k from counts: the beta-binomial, whose forecasts beat a curve fitted to the coverage
(Kazdan et al. 2025).

Problem i was solved in c_i of n_i samples. With p_i drawn from Beta(a, b), pass@k = 1 - B(a,
b+k)/B(a, b), and 1 - pass@k falls as k^-a. (a, b) is the posterior mode under ln a ~ N(0, 1), ln b
~ N(ln 10, 2.5^2): without the prior a model that solves almost nothing has no finite optimum.
Intervals: bootstrap over problems, all samples of one together.

Everything is a sum of logarithms, because ln B(a+c, b+n-c) - ln B(a, b) = sum_{i<c}
ln(a+i) + sum_{j<n-c} ln(b+j)
- sum_{m<n} ln(a+b+m); R draws side by side cost one matrix product.
"""

from __future__ import annotations

import numpy as np

from harness.errors import FitError
from harness.laws.catalogue import law_named
from harness.laws.fitting import check_resampling, percentiles
from harness.laws.gram import Array, Column, solve
from harness.laws.result import Certificate, Fit, Warn
from harness.laws.table import data_hash

PRIOR_MEAN, PRIOR_SD = np.array([0.0, np.log(10.0)]), np.array([1.0, 2.5])
TOLERANCE = 1e-8  # Newton decrement: nats of posterior that one more step would gain


def fit(correct: Column, samples: Column, *, bootstrap: int = 1000, seed: int = 0) -> Fit:
    """Beta-binomial of `correct` of `samples` per problem: a Fit of law `pass_at_k`, which
    `predict` evaluates at any k.

    `objective` is the negative log posterior without constants. FitError for counts that are none,
    or under 8 problems.
    """
    c, n = np.asarray(correct, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if c.shape != n.shape or c.ndim != 1:
        raise FitError(f"correct has shape {c.shape}, samples {n.shape}: give one count of each per problem.")
    bad = ~((c >= 0) & (c <= n) & (n >= 1) & (c % 1 == 0) & (n % 1 == 0))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise FitError(f"problem {i}: {c[i]:g} correct of {n[i]:g} samples is no count. Drop unfinished problems.")
    if len(c) < 8:
        raise FitError(f"{len(c)} problems are too few for a distribution over problems; give at least 8.")
    check_resampling(bootstrap, seed)
    top = int(n.max())
    steps = np.arange(top)
    tails = [(x[:, None] > steps).astype(np.float64) for x in (c, n - c, n)]  # problems x steps
    whole = np.ones((1, len(c)))
    starts = np.array([[x, y] for x in (-1.5, 0.0, 1.5) for y in (-1.0, 2.0, 5.0)])
    modes = [_mode([whole @ t for t in tails], s[None]) for s in starts]
    value = np.array([f[1][0] for f in modes])
    best = int(value.argmin())
    theta, decrement = modes[best][0], float(modes[best][2][0])
    agreeing = int((value <= value[best] + 1e-6).sum())
    drawn, failed = np.empty((0, 2)), 0
    if bootstrap:
        rng = np.random.default_rng(seed)
        weight = rng.multinomial(len(c), np.full(len(c), 1 / len(c)), bootstrap).astype(np.float64)
        drawn, _, decrements = _mode([weight @ t for t in tails], np.repeat(theta, bootstrap, axis=0))
        failed = int((decrements > TOLERANCE).sum())
        drawn = drawn[decrements <= TOLERANCE]
    draws = {name: np.exp(drawn[:, i]) for i, name in enumerate(("a", "b"))} if bootstrap else {}
    passed = decrement <= TOLERANCE and agreeing >= 3
    law = law_named("pass_at_k")
    warnings: list[Warn] = []
    if not c.any() or (c == n).all():
        which = "no sample is" if not c.any() else "all samples are"
        warnings.append(Warn("PRIOR_DECIDES", f"{which} correct: the prior, not the data, sets the forecast."))
    mean = np.exp(theta[0, 0] - np.logaddexp(theta[0, 0], theta[0, 1]))
    return Fit(
        law="pass_at_k",
        formula=law.formula,
        params={"a": float(np.exp(theta[0, 0])), "b": float(np.exp(theta[0, 1]))},
        interval={k: percentiles(v) for k, v in draws.items()},
        derived={"pass_at_1": float(mean)},
        derived_interval={"pass_at_1": percentiles(draws["a"] / (draws["a"] + draws["b"]))} if bootstrap else {},
        objective=float(value[best]),
        delta=1.0,
        residual_rms=float(np.sqrt(((c / n - mean) ** 2).mean())),
        n_points=len(c),
        n_clusters=len(c),
        certificate=Certificate(
            passed, decrement, 0.0, len(starts), agreeing, 1.0, [], "posterior mode, Newton",
            None if passed else f"not converged: decrement {decrement:.1e}, {agreeing} of {len(starts)} starts agree",
        ),
        identified={k: v[1] < 10 * v[0] for k, v in ((k, percentiles(x)) for k, x in draws.items())},
        warnings=warnings,
        span={"k": [1.0, float(top)]},
        bootstrap={"draws": bootstrap, "failed": failed, "seed": seed} if bootstrap else {},
        draws={k: v.tolist() for k, v in draws.items()},
        data_hash=data_hash({"correct": c, "samples": n}),
    )  # fmt: skip


def _mode(tails: list[Array], theta: Array) -> tuple[Array, Array, Array]:
    """Minimise the negative log posterior from `theta` (R, 2) = (ln a, ln b): mode, value, Newton
    decrement."""
    steps = np.arange(int(tails[0].shape[1]))
    right, wrong, all_ = tails

    def value(t: Array) -> Array:
        a, b = np.exp(t[:, :1]), np.exp(t[:, 1:])
        logs = (right * np.log(a + steps)).sum(1) + (wrong * np.log(b + steps)).sum(1)
        return (all_ * np.log(a + b + steps)).sum(1) - logs + (((t - PRIOR_MEAN) / PRIOR_SD) ** 2).sum(1) / 2

    theta = theta.copy()
    current = value(theta)
    decrement = np.full(len(theta), np.inf)
    for _ in range(100):
        a, b = np.exp(theta[:, :1]), np.exp(theta[:, 1:])
        ra, rb, rs = 1 / (a + steps), 1 / (b + steps), 1 / (a + b + steps)
        shared, bend = (all_ * rs).sum(1), (all_ * rs**2).sum(1)
        slope = np.stack([shared - (right * ra).sum(1), shared - (wrong * rb).sum(1)], axis=1)
        size = np.stack([a[:, 0], b[:, 0]], axis=1)
        grad = slope * size + (theta - PRIOR_MEAN) / PRIOR_SD**2
        hess = -bend[:, None, None] * size[:, :, None] * size[:, None, :]
        hess[:, 0, 0] += (right * ra**2).sum(1) * size[:, 0] ** 2 + slope[:, 0] * size[:, 0] + 1 / PRIOR_SD[0] ** 2
        hess[:, 1, 1] += (wrong * rb**2).sum(1) * size[:, 1] ** 2 + slope[:, 1] * size[:, 1] + 1 / PRIOR_SD[1] ** 2
        lowest = np.linalg.eigvalsh(hess)[:, 0]
        hess += (np.maximum(1e-3 - lowest, 0.0))[:, None, None] * np.eye(2)
        step = -solve(hess, grad[..., None])[..., 0]
        decrement = -(step * grad).sum(1) / 2
        if (decrement <= 1e-14).all():
            break
        step /= np.maximum(1.0, np.abs(step).max(1, keepdims=True))
        for _ in range(30):
            trial = value(theta + step)
            worse = trial > current + 1e-12 * np.abs(current)
            if not worse.any():
                break
            step[worse] /= 2
        theta, current = theta + step, value(theta + step)
    return theta, current, decrement
