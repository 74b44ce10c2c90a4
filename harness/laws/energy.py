"""What the laws of energy say: whether joules are proportional to FLOP, and the throughput at which idle power stops dominating."""

from __future__ import annotations

import numpy as np

from harness.laws.result import Fit

BALANCE = "flop_per_s_balance"  # of energy = P_idle t + e C: where both terms are equal


def proportional(fit: Fit) -> str | None:
    """The test of b = 1 for energy = k C^b, in words; None for other laws and without an interval.

    The p value is two-sided, from the share of bootstrap draws on the far side of 1; it is never below what their number resolves.
    """
    ends = fit.interval.get("b")
    if fit.law != "energy_power" or ends is None or "b" in fit.fixed:
        return None
    draws = np.asarray(fit.draws.get("b", []))
    p = ""
    if len(draws):
        tail = min(int((draws <= 1).sum()), int((draws >= 1).sum()))
        p = f", p = {max(2 * tail, 2) / (len(draws) + 1):.2g}" + (" at the most" if tail == 0 else "")
    if ends[0] <= 1 <= ends[1]:
        return f"b = 1 (joules proportional to FLOP) is not rejected at 5 %{p}"
    return f"b = 1 (joules proportional to FLOP) is rejected at 5 %{p}"


def balance(fit: Fit) -> tuple[float, list[float] | None] | None:
    """FLOP/s at which P_idle t = e C, with its 95 % interval; None where the fit has no positive P_idle and e."""
    value = fit.derived.get(BALANCE)
    return None if fit.law != "energy_idle" or not value else (value, fit.derived_interval.get(BALANCE))
