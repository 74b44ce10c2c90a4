"""Scaling laws fitted to tables of points: `fit`, then `predict`, `frontier`, `summary`.
Needs numpy and SciPy, never torch.

Reading order: `law` (a law, of the harness or of a caller's function), `parameter`, `table`,
`forms` (sums of power terms), `catalogue` (every law by name; `describe` says what each is),
`refuse` (before a fit), `solver` (a law with its data, optimum, certificate, intervals, trust),
`fitting` (`fit`, all of it together), `predict`, `held_out`, `sentences`, `result` (what is
stored). On top of `fit`: `isoflop` (approach 2), `compare` (approaches 1, 2, 3 and the roll-out),
`broken` (when to offer a broken law), `pass_at_k` (beta-binomial from counts), `two_step` (loss,
then accuracy).
"""

from harness.laws import broken, compare, isoflop, pass_at_k
from harness.laws.catalogue import LAWS, describe
from harness.laws.fitting import evaluate, fit
from harness.laws.law import Law
from harness.laws.parameter import Parameter
from harness.laws.predict import Frontier, frontier, predict, predict_interval
from harness.laws.result import Certificate, Fit, HeldOut, Warn
from harness.laws.sentences import summary
from harness.laws.two_step import two_step

__all__ = [
    "LAWS",
    "Certificate",
    "Fit",
    "Frontier",
    "HeldOut",
    "Law",
    "Parameter",
    "Warn",
    "broken",
    "compare",
    "describe",
    "evaluate",
    "fit",
    "frontier",
    "isoflop",
    "pass_at_k",
    "predict",
    "predict_interval",
    "summary",
    "two_step",
]
