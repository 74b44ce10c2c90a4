"""Every law by name: the sums of terms of `forms.SUMS` and the other shapes below, with units,
starts, bounds, source.

`describe(law)` prints what a reader of a fit must know. Symbols: N parameters, D tokens seen, U
unique tokens, C training FLOP, k samples, n votes. Losses in nat per token, accuracies and errors
as shares of 1.
"""

from __future__ import annotations

import numpy as np

from harness.errors import FitError
from harness.laws.forms import SUMS, kaplan_scales
from harness.laws.gram import Array
from harness.laws.law import Law, Values
from harness.laws.parameter import Coordinate, exponent, floor, term
from harness.laws.result import Fit


def _softplus(z: Array) -> Array:
    """ln(1 + e^z) of complex z, without overflow."""
    up = z.real > 0
    return np.where(up, z, 0.0) + np.log1p(np.exp(np.where(up, -z, z)))


def _sigmoid(z: Array) -> Array:
    return np.exp(-_softplus(-z))


def single_epoch_optimum(p: Values, unique: Array) -> Array:
    """N*(U) of the single-epoch law: G (G U)^(beta/alpha), G = (alpha A / (beta
    B))^(1/(alpha+beta))."""
    ln_g = (np.log(p["alpha"]) + np.log(p["A"]) - np.log(p["beta"]) - np.log(p["B"])) / (p["alpha"] + p["beta"])
    return np.exp(ln_g + (ln_g + np.log(unique)) * p["beta"] / p["alpha"])


def _data_constrained(p: Values, x: Values) -> Array:
    n, d, u = x["N"], x["D"], x["U"]
    best = single_epoch_optimum(p, u)
    base = np.where(n < best.real, n, best)
    excess = n / base - 1
    excess = np.where(excess.real > 0, excess, 0.0)
    repeats = np.maximum(d / u - 1, 0.0)
    n_eff = base * (1 + p["R_N"] * (1 - np.exp(-excess / p["R_N"])))
    d_eff = np.minimum(d, u) * (1 + p["R_D"] * (1 - np.exp(-repeats / p["R_D"])))
    return p["E"] + p["A"] * np.exp(-p["alpha"] * np.log(n_eff)) + p["B"] * np.exp(-p["beta"] * np.log(d_eff))


def _over_training(p: Values, x: Values) -> Array:
    ln_m, ln_c = np.log(x["D"] / x["N"]), np.log(6 * x["N"] * x["D"])
    eta = p["eta"]
    return p["E"] + p["p"] * np.exp(eta * (ln_m - ln_c)) + p["r"] * np.exp(-eta * (ln_m + ln_c))


def _kaplan_nd(p: Values, x: Values) -> Array:
    ln_n = (np.log(p["A"]) - p["alpha_N"] * np.log(x["N"])) / p["alpha_D"]
    ln_d = (np.log(p["B"]) - p["alpha_D"] * np.log(x["D"])) / p["alpha_D"]
    return np.exp(p["alpha_D"] * (ln_d + _softplus(ln_n - ln_d)))


def _broken(p: Values, x: Values) -> Array:
    ln_x = np.log(x["C"])
    bend = _softplus((ln_x - np.log(p["x1"])) / p["w"])
    return p["E"] + np.exp(np.log(p["b"]) - p["c0"] * ln_x - p["c1"] * p["w"] * bend)


def _accuracy_flop(p: Values, x: Values) -> Array:
    return p["chance"] + (p["ceiling"] - p["chance"]) * _sigmoid(p["s"] * (np.log(x["C"]) - np.log(p["C0"])))


def _accuracy_loss(p: Values, x: Values) -> Array:
    return p["chance"] + (p["ceiling"] - p["chance"]) * _sigmoid(p["k"] * (p["L0"] - x["loss"]))


def _pass_at_k(p: Values, x: Values) -> Array:
    """1 - B(a, b+k)/B(a, b) = 1 - prod_{j<k} (b+j)/(a+b+j), for whole k."""
    steps = np.arange(int(x["k"].max()))
    logs = np.cumsum(np.log(p["b"] + steps) - np.log(p["a"] + p["b"] + steps), axis=-1)
    return 1 - np.exp(logs[..., np.round(x["k"]).astype(int) - 1])


def _over_training_alpha(p: Values) -> dict[str, Array]:
    """The exponent of N and of D."""
    return {"alpha": 2 * p["eta"]}


def _whole_samples(columns: Values) -> None:
    k = columns["k"]
    if (k % 1 > 0).any():
        raise FitError(f"column 'k' holds {float(k[k % 1 > 0][0]):g}: k counts samples, so it is a whole number.")


def _decay(name: str) -> Coordinate:
    """A number of repeats after which they count for less, from 0.01 to 1e5."""
    return Coordinate(name, float(np.log(1e-2)), float(np.log(1e5)), (-1.0, 6.0), "scale")


_CHANCE = Coordinate("chance", 0.0, 1.0, (0.0, 0.5), "level", log=False)
_CEILING = Coordinate("ceiling", 0.0, 1.0, (0.5, 1.0), "level", log=False)

CURVES: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "data_constrained",
            "L = E + A/N'^alpha + B/D'^beta, N' = U_N (1 + R_N (1 - e^(-r_N/R_N))), D' = U (1 + R_D (1 - e^(-r_D/R_D))), "
            "r_D = max(D/U - 1, 0), U_N = min(N, N*(U)), r_N = max(N/U_N - 1, 0)",
            "loss",
            ("N", "D", "U"),
            (
                term("A", "alpha", "N"), exponent("alpha"), term("B", "beta", "D"), exponent("beta"), floor(),
                _decay("R_D"), _decay("R_N"),
            ),
            _data_constrained,
            "N parameters, D tokens seen, U unique tokens, loss nat per token; R_D, R_N repeats (epochs - 1)",
            "Muennighoff et al. 2023, arXiv:2305.16264; fix A, B, E, alpha, beta at a single-epoch fit",
        ),
        Law(
            "over_training",
            "L = E + (p M^eta + r M^-eta) C^-eta, M = D/N, C = 6 N D",
            "loss",
            ("N", "D"),
            (term("p", "eta", "N", -2.0), term("r", "eta", "D", -2.0), exponent("eta", (0.02, 0.6)), floor()),
            _over_training,
            "N parameters, D tokens, loss nat per token; holds from M = 20 up",
            "Gadre et al. 2024, arXiv:2403.08540; law chinchilla with alpha = beta = 2 eta; least squares of the loss",
            residual="linear",
            derived=_over_training_alpha,
        ),
        Law(
            "kaplan_nd",
            "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D, A = N_c^alpha_N, B = D_c^alpha_D",
            "loss",
            ("N", "D"),
            (term("A", "alpha_N", "N"), exponent("alpha_N"), term("B", "alpha_D", "D"), exponent("alpha_D")),
            _kaplan_nd,
            "N parameters (Kaplan: without embeddings), D tokens, loss nat per token; no floor",
            "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5",
            derived=kaplan_scales,
            questions="run",
        ),
        Law(
            "broken",
            "L = E + b C^-c0 (1 + (C/x1)^(1/w))^(-c1 w)",
            "loss",
            ("C",),
            (
                term("b", "c0", "C"), exponent("c0"), Coordinate("c1", -2.0, 5.0, (-0.3, 1.0), log=False),
                Coordinate("x1", -12.0, 12.0, (-6.0, 6.0), "scale", centre="C"), Coordinate("w", -4.0, 2.0, (-3.0, 1.0)), floor(),
            ),
            _broken,
            "C training FLOP, loss nat per token; x1 FLOP of the bend, w its width in ln C",
            "Caballero et al. 2022, arXiv:2210.14891; see `broken.offer` before believing one",
            needs=8,
            max_decades=1.0,
            questions="loss",
            simpler="loss_compute",
        ),
        Law(
            "accuracy_flop",
            "accuracy = chance + (ceiling - chance) / (1 + e^(-s ln(C/C0)))",
            "accuracy",
            ("C",),
            (_CHANCE, _CEILING, Coordinate("s", -4.0, 4.0, (-2.0, 2.0)), Coordinate("C0", -20.0, 20.0, (-5.0, 5.0), "scale", centre="C")),
            _accuracy_flop,
            "C FLOP of training or of the test; accuracy 0..1; fix chance where it is known",
            "sigmoid of log FLOP, least squares of the accuracy; OpenAI 2023 arXiv:2303.08774 uses its power-law limit",
            residual="linear",
            unit_range=True,
            needs=4,
        ),
        Law(
            "accuracy_loss",
            "accuracy = chance + (ceiling - chance) / (1 + e^(-k (L0 - loss)))",
            "accuracy",
            ("loss",),
            (_CHANCE, _CEILING, Coordinate("k", -4.0, 6.0, (-1.0, 4.0)), Coordinate("L0", -20.0, 20.0, (-1.0, 1.0), log=False, centre="loss")),
            _accuracy_loss,
            "loss nat per token or bits per byte; accuracy 0..1; fix chance where it is known",
            "second step of OLMo's ladder, arXiv:2412.04403",
            residual="linear",
            unit_range=True,
            linear=("loss",),
            needs=4,
        ),
        Law(
            "error_loss",
            "error = eps - k e^(-gamma loss)",
            "error",
            ("loss",),
            (
                Coordinate("eps", 0.0, 1.0, (0.3, 1.0), "level", log=False),
                Coordinate("k", -15.0, 3.0, (-4.0, 0.0), anchor=("gamma", "loss", -1.0)),
                Coordinate("gamma", 1e-3, 20.0, (0.1, 4.0), "coefficient", log=False),
            ),
            lambda p, x: p["eps"] - p["k"] * np.exp(-p["gamma"] * x["loss"]),
            "loss nat per token; error 0..1, mean over tasks",
            "Gadre et al. 2024, arXiv:2403.08540; least squares of the error",
            residual="linear",
            unit_range=True,
            linear=("loss",),
            needs=4,
        ),
        Law(
            "coverage",
            "pass@k = exp(-a k^-b)",
            "coverage",
            ("k",),
            (Coordinate("a", -12.0, 6.0, (-3.0, 2.0), anchor=("b", "k", -1.0)), exponent("b", (0.05, 2.0))),
            lambda p, x: np.exp(-p["a"] * np.exp(-p["b"] * np.log(x["k"]))),
            "k samples per problem; coverage: share of problems with a correct one among k",
            "Brown et al. 2024, arXiv:2407.21787; its error near coverage 1 is large: prefer `passk` for forecasts",
            residual="linear",
            unit_range=True,
        ),
        Law(
            "pass_at_k",
            "pass@k = 1 - B(a, b+k)/B(a, b)",
            "coverage",
            ("k",),
            (Coordinate("a", -7.0, 7.0, (-2.0, 2.0)), Coordinate("b", -7.0, 12.0, (-1.0, 5.0))),
            _pass_at_k,
            "k samples per problem, whole numbers; coverage: share of problems with a correct one among k",
            "beta-binomial; from counts by `passk.fit`, from a coverage curve by least squares",
            residual="linear",
            unit_range=True,
            check=_whole_samples,
            made_from=("correct", "samples"),
        ),
        Law(
            "voting",
            "error = e_inf + q n^-b",
            "error",
            ("n",),
            (term("q", "b", "n"), exponent("b", (0.05, 2.0)), Coordinate("e_inf", 0.0, 1.0, (0.0, 0.5), "floor", log=False)),
            lambda p, x: p["e_inf"] + p["q"] * np.exp(-p["b"] * np.log(x["n"])),
            "n votes per problem; error of the majority; e_inf: share of problems whose most frequent answer is wrong",
            "saturating law of majority voting; least squares of the error",
            residual="linear",
            unit_range=True,
            needs=4,
        ),
    )
}  # fmt: skip
LAWS: dict[str, Law] = {**SUMS, **CURVES}
NAMES = tuple(LAWS)


def law_named(name: str) -> Law:
    """One of the harness's own laws; FitError for any other name."""
    if name not in LAWS:
        raise FitError(f"law={name!r} is unknown. Choose one of: {', '.join(NAMES)}.")
    return LAWS[name]


def chosen(law: str | Law) -> Law:
    """A law by name, or the caller's own. FitError where a caller's takes the name of another."""
    if isinstance(law, str):
        return law_named(law)
    if law.name in LAWS and LAWS[law.name] != law:
        raise FitError(
            f"law {law.name}: the harness has another law of this name, and files of fits know laws by name. Give it another name."
        )
    return law


def law_of(fit: Fit) -> Law:
    """The law of a fit. FitError where the fit came from a file and its law was a caller's
    function."""
    if fit.own_law is not None:
        return fit.own_law
    if fit.law not in LAWS:
        raise FitError(
            f"law {fit.law!r} is unknown here: it was a caller's function, and a file holds its parameters, not the function. Build "
            "the same law again and give it: fit.with_law(law). A law of a newer harness needs that harness."
        )
    return LAWS[fit.law]


def is_from_counts(fit: Fit) -> bool:
    """Whether a fit is the posterior mode of counts, which leave no residuals of rows."""
    return "correct" in law_of(fit).made_from and not fit.residuals


def describe(law: str | Law) -> str:
    """Formula, units, objective, starts, bounds and source of a law, in words."""
    form = chosen(law)
    starts, bounds = form.search()
    residual = "ln y, sum of Huber at 1e-3" if form.residual == "log" else "y, least squares"
    return "\n".join(
        f"{k:<9} {v}"
        for k, v in (
            ("law", form.name), ("formula", form.formula), ("units", form.units), ("residual", residual), ("starts", starts),
            ("bounds", bounds), ("source", form.source),
        )
    )  # fmt: skip
