"""Scaling laws fitted to tables of points: `fit`, then `predict`, `frontier`, `summary`. numpy only, never
torch.

Reading order: `forms` (the laws), `solve` (objective, optimum, certificate), `bootstrap` (intervals), `trust`
(refusals, warnings), `fitting` (`fit`, all of it together), `predict`, `heldout`, `text`, `result` (what is stored).
"""

from harness.laws import compare, isoflop
from harness.laws.fitting import evaluate, fit
from harness.laws.forms import LAWS
from harness.laws.predict import Frontier, frontier, predict, predict_interval
from harness.laws.result import Certificate, Fit, HeldOut, Warn
from harness.laws.text import summary

__all__ = [
    "LAWS",
    "Certificate",
    "Fit",
    "Frontier",
    "HeldOut",
    "Warn",
    "compare",
    "evaluate",
    "fit",
    "frontier",
    "isoflop",
    "predict",
    "predict_interval",
    "summary",
]
