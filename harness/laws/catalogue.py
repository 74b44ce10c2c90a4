"""Every law by name: the sums of terms of `forms.LAWS` and the other shapes below, with units, starts, bounds, source.

`describe(name)` prints what a reader of a fit must know. Symbols: N parameters, D tokens seen, U unique tokens, C training
FLOP, k samples, n votes. Losses in nat per token, accuracies and errors as shares of 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.errors import FitError
from harness.laws.curve import Curve, CurveBound, Param
from harness.laws.forms import EXPONENT_BOUNDS, LAWS, LOG_SHARE_BOUNDS, Array, Bound, Law, Table
from harness.laws.forms import value as sum_value

Values = Mapping[str, Array]
AnyLaw = Law | Curve
AnyBound = Bound | CurveBound


def _exponent(name: str, start: tuple[float, float] = (0.03, 1.2)) -> Param:
    return Param(name, *EXPONENT_BOUNDS, start, "exponent", log=False)


def _floor(name: str = "E") -> Param:
    return Param(name, 0.0, 1e3, (0.0, 1.0), "floor", log=False, share=True)


def _term(name: str, exponent: str, symbol: str, factor: float = -1.0) -> Param:
    return Param(name, *LOG_SHARE_BOUNDS, (-4.0, 1.0), log=True, share=True, anchor=(exponent, symbol, factor))


def _softplus(z: Array) -> Array:
    """ln(1 + e^z) of complex z, without overflow."""
    up = z.real > 0
    return np.where(up, z, 0.0) + np.log1p(np.exp(np.where(up, -z, z)))


def _sigmoid(z: Array) -> Array:
    return np.exp(-_softplus(-z))


def single_epoch_optimum(p: Values, unique: Array) -> Array:
    """N*(U) of the single-epoch law: G (G U)^(beta/alpha), G = (alpha A / (beta B))^(1/(alpha+beta))."""
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


_CHANCE = Param("chance", 0.0, 1.0, (0.0, 0.5), "level", log=False)
_CEILING = Param("ceiling", 0.0, 1.0, (0.5, 1.0), "level", log=False)
_DECAY = {"low": float(np.log(1e-2)), "high": float(np.log(1e5)), "start": (-1.0, 6.0), "kind": "scale"}

CURVES: dict[str, Curve] = {
    law.name: law
    for law in (
        Curve(
            "data_constrained",
            "L = E + A/N'^alpha + B/D'^beta, N' = U_N (1 + R_N (1 - e^(-r_N/R_N))), D' = U (1 + R_D (1 - e^(-r_D/R_D))), "
            "r_D = max(D/U - 1, 0), U_N = min(N, N*(U)), r_N = max(N/U_N - 1, 0)",
            "loss",
            ["N", "D", "U"],
            (
                _term("A", "alpha", "N"), _exponent("alpha"), _term("B", "beta", "D"), _exponent("beta"), _floor(),
                Param("R_D", **_DECAY), Param("R_N", **_DECAY),
            ),
            _data_constrained,
            "N parameters, D tokens seen, U unique tokens, loss nat per token; R_D, R_N repeats (epochs - 1)",
            "Muennighoff et al. 2023, arXiv:2305.16264; fix A, B, E, alpha, beta at a single-epoch fit",
        ),
        Curve(
            "over_training",
            "L = E + (p M^eta + r M^-eta) C^-eta, M = D/N, C = 6 N D",
            "loss",
            ["N", "D"],
            (_term("p", "eta", "N", -2.0), _term("r", "eta", "D", -2.0), _exponent("eta", (0.02, 0.6)), _floor()),
            _over_training,
            "N parameters, D tokens, loss nat per token; holds from M = 20 up",
            "Gadre et al. 2024, arXiv:2403.08540; law chinchilla with alpha = beta = 2 eta; least squares of the loss",
            plain=True,
        ),
        Curve(
            "kaplan_nd",
            "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D, A = N_c^alpha_N, B = D_c^alpha_D",
            "loss",
            ["N", "D"],
            (_term("A", "alpha_N", "N"), _exponent("alpha_N"), _term("B", "alpha_D", "D"), _exponent("alpha_D")),
            _kaplan_nd,
            "N parameters (Kaplan: without embeddings), D tokens, loss nat per token; no floor",
            "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5",
        ),
        Curve(
            "broken",
            "L = E + b C^-c0 (1 + (C/x1)^(1/w))^(-c1 w)",
            "loss",
            ["C"],
            (
                _term("b", "c0", "C"), _exponent("c0"), Param("c1", -2.0, 5.0, (-0.3, 1.0), log=False),
                Param("x1", -12.0, 12.0, (-6.0, 6.0), "scale", centre="C"), Param("w", -4.0, 2.0, (-3.0, 1.0)), _floor(),
            ),
            _broken,
            "C training FLOP, loss nat per token; x1 FLOP of the bend, w its width in ln C",
            "Caballero et al. 2022, arXiv:2210.14891; see `broken.offer` before believing one",
            needs=8,
            max_decades=1.0,
        ),
        Curve(
            "accuracy_flop",
            "accuracy = chance + (ceiling - chance) / (1 + e^(-s ln(C/C0)))",
            "accuracy",
            ["C"],
            (_CHANCE, _CEILING, Param("s", -4.0, 4.0, (-2.0, 2.0)), Param("C0", -20.0, 20.0, (-5.0, 5.0), "scale", centre="C")),
            _accuracy_flop,
            "C FLOP of training or of the test; accuracy 0..1; fix chance where it is known",
            "sigmoid of log FLOP, least squares of the accuracy; OpenAI 2023 arXiv:2303.08774 uses its power-law limit",
            plain=True,
            unit_range=True,
            needs=4,
        ),
        Curve(
            "accuracy_loss",
            "accuracy = chance + (ceiling - chance) / (1 + e^(-k (L0 - loss)))",
            "accuracy",
            ["loss"],
            (_CHANCE, _CEILING, Param("k", -4.0, 6.0, (-1.0, 4.0)), Param("L0", -20.0, 20.0, (-1.0, 1.0), log=False, centre="loss")),
            _accuracy_loss,
            "loss nat per token or bits per byte; accuracy 0..1; fix chance where it is known",
            "second step of OLMo's ladder, arXiv:2412.04403",
            plain=True,
            unit_range=True,
            linear=("loss",),
            needs=4,
        ),
        Curve(
            "error_loss",
            "error = eps - k e^(-gamma loss)",
            "error",
            ["loss"],
            (
                Param("eps", 0.0, 1.0, (0.3, 1.0), "level", log=False),
                Param("k", -15.0, 3.0, (-4.0, 0.0), anchor=("gamma", "loss", -1.0)),
                Param("gamma", 1e-3, 20.0, (0.1, 4.0), "coefficient", log=False),
            ),
            lambda p, x: p["eps"] - p["k"] * np.exp(-p["gamma"] * x["loss"]),
            "loss nat per token; error 0..1, mean over tasks",
            "Gadre et al. 2024, arXiv:2403.08540; least squares of the error",
            plain=True,
            unit_range=True,
            linear=("loss",),
            needs=4,
        ),
        Curve(
            "coverage",
            "pass@k = exp(-a k^-b)",
            "coverage",
            ["k"],
            (Param("a", -12.0, 6.0, (-3.0, 2.0), anchor=("b", "k", -1.0)), _exponent("b", (0.05, 2.0))),
            lambda p, x: np.exp(-p["a"] * np.exp(-p["b"] * np.log(x["k"]))),
            "k samples per problem; coverage: share of problems with a correct one among k",
            "Brown et al. 2024, arXiv:2407.21787; its error near coverage 1 is large: prefer `passk` for forecasts",
            plain=True,
            unit_range=True,
        ),
        Curve(
            "pass_at_k",
            "pass@k = 1 - B(a, b+k)/B(a, b)",
            "coverage",
            ["k"],
            (Param("a", -7.0, 7.0, (-2.0, 2.0)), Param("b", -7.0, 12.0, (-1.0, 5.0))),
            _pass_at_k,
            "k samples per problem, whole numbers; coverage: share of problems with a correct one among k",
            "beta-binomial; from counts by `passk.fit`, from a coverage curve by least squares",
            plain=True,
            unit_range=True,
        ),
        Curve(
            "voting",
            "error = e_inf + q n^-b",
            "error",
            ["n"],
            (_term("q", "b", "n"), _exponent("b", (0.05, 2.0)), Param("e_inf", 0.0, 1.0, (0.0, 0.5), "floor", log=False)),
            lambda p, x: p["e_inf"] + p["q"] * np.exp(-p["b"] * np.log(x["n"])),
            "n votes per problem; error of the majority; e_inf: share of problems whose most frequent answer is wrong",
            "saturating law of majority voting; least squares of the error",
            plain=True,
            unit_range=True,
            needs=4,
        ),
    )
}  # fmt: skip
NAMES = (*LAWS, *CURVES)


def law_named(name: str) -> AnyLaw:
    if name in LAWS:
        return LAWS[name]
    if name in CURVES:
        return CURVES[name]
    raise FitError(f"law={name!r} is unknown. Choose one of: {', '.join(NAMES)}.")


def bind(law: AnyLaw, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> AnyBound:
    return CurveBound(law, table, y, weight, fixed) if isinstance(law, Curve) else Bound(law, table, y, weight, fixed)


def value(law: AnyLaw, params: Mapping[str, Array | float], table: Table) -> Array:
    """y of the law at the rows of `table`. Parameters may be arrays of shape (R, 1): then the result is (R, n)."""
    if not isinstance(law, Curve):
        return sum_value(law, params, table)
    data = {s: np.asarray(table[s], dtype=np.float64) for s in law.symbols}
    result = law.function({k: np.asarray(v, dtype=np.float64) for k, v in params.items()}, data)
    return np.broadcast_to(result, np.broadcast_shapes(result.shape, next(iter(data.values())).shape))


def describe(name: str) -> str:
    """Formula, units, objective, starts, bounds and source of a law, in words."""
    law = law_named(name)
    if isinstance(law, Curve):
        starts = f"best and far-apart 16 (then 80) of 4096 points of the box {_boxes(law, start=True)}"
        bounds = _boxes(law, start=False)
        residual = "y, least squares" if law.plain else "ln y, sum of Huber at 1e-3"
    else:
        starts = "variable projection on 20 exponents per axis over 0.03-2, best and far-apart 16 (then 80) cells"
        bounds = (
            f"exponents {EXPONENT_BOUNDS[0]}-{EXPONENT_BOUNDS[1]:g}; ln of a term relative to y -25..25; others >= 0"
        )
        residual = "ln y, sum of Huber at 1e-3"
    return "\n".join(
        f"{k:<9} {v}"
        for k, v in (
            ("law", name), ("formula", law.formula), ("units", law.units), ("residual", residual), ("starts", starts),
            ("bounds", bounds), ("source", law.source),
        )
    )  # fmt: skip


def _boxes(law: Curve, start: bool) -> str:
    def one(p: Param) -> str:
        low, high = p.start if start else (p.low, p.high)
        of = f"ln {p.name}" if p.log else p.name
        what = " at the data's centre" if p.anchor else f" - mean of {p.centre}" if p.centre else ""
        return f"{of}{' / y' if p.share else ''}{what} {low:g}..{high:g}"

    return "; ".join(one(p) for p in law.parameters)
