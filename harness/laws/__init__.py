"""Scaling laws fitted to tables of points: `fit`, then `predict`, `frontier`, `summary`. numpy only, never
torch.

Reading order: `forms` (sums of power terms), `curve` and `catalogue` (laws of any other shape; `describe` says what each
is), `solve` (objective, optimum, certificate), `bootstrap` (intervals), `refuse` and `trust` (before and after a fit), `fitting` (`fit`, all
of it together), `predict`, `heldout`, `energy` (what a law of joules says), `text`, `result` (what is stored). On top of
`fit`: `isoflop` (approach 2), `compare` (approaches 1, 2, 3 and the roll-out), `broken` (when to offer a broken law),
`passk` (beta-binomial from counts), `twostep` (loss, then accuracy).
"""

from harness.laws import broken, compare, isoflop, passk
from harness.laws.catalogue import describe
from harness.laws.fitting import evaluate, fit
from harness.laws.forms import LAWS
from harness.laws.predict import Frontier, frontier, predict, predict_interval
from harness.laws.result import Certificate, Fit, HeldOut, Warn
from harness.laws.text import summary
from harness.laws.twostep import two_step

__all__ = [
    "LAWS",
    "Certificate",
    "Fit",
    "Frontier",
    "HeldOut",
    "Warn",
    "broken",
    "compare",
    "describe",
    "evaluate",
    "fit",
    "frontier",
    "isoflop",
    "passk",
    "predict",
    "predict_interval",
    "summary",
    "two_step",
]
