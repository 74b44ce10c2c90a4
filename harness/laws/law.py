"""A law, and a law bound to data: any function of columns and parameters, in solver coordinates of order one.

`Law` says all that is particular to one law; nothing else in the package asks for its name. `Law.from_function` makes one of
a caller's function. `BoundLaw` is what the solver sees of a law and its data; `BoundFunction` is that of any function, and
`forms` has a faster one for sums of power terms.

Derivatives are complex steps (Squire & Trapp 1998): exact to rounding, no formula to get wrong; a law's function must
therefore take complex parameters, and compare real parts only. Of a caller's function they are central differences.
Second derivatives are central differences of the first.

Shapes: R parameter vectors side by side, n rows of data, p parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from harness.errors import FitError
from harness.laws.gram import Array, Factor, gram
from harness.laws.parameter import Coordinate, Parameter
from harness.laws.table import Table, column

Residual = Literal["log", "linear"]
Question = Literal["run", "loss"]
Values = Mapping[str, Array]
RESIDUALS: tuple[Residual, ...] = ("log", "linear")

COMPLEX_STEP = 1e-30  # its square vanishes, so the derivative has no truncation error
FIRST_STEP = 6e-6  # of central differences of a function: the cube root of the rounding
SECOND_STEP = 1e-5  # of central differences of complex-step derivatives
SECOND_STEP_OF_DIFFERENCES = 1e-4  # of central differences of central differences, which carry more rounding
MAX_POOL = 4096  # points of the start box that are looked at
COLD_POOL = 256  # of them, that a cold start looks at
NO_VALUE = 1e6  # what a law is taken to be where it is no number, so that no step goes there
TOLERANCE_BROADCAST = 1e-9  # relative: a function that broadcasts gives the same alone and side by side


class BoundLaw(Protocol):
    """A law with its data, for R parameter vectors at once in solver coordinates.

    `target` (n,) holds what residuals are taken from: ln y for the residual "log", y for "linear" (both perhaps in
    scaled units). `weight` (n,) has mean 1. `free`, `lower`, `upper`, `origin` (p,): which coordinates move, their bounds, and
    the values of those that do not. `coarse`: a value is dear, so profiles have few points.
    """

    law: Law
    n: int
    names: list[str]
    fixed: dict[str, float]
    target: Array
    weight: Array
    free: NDArray[np.bool_]
    lower: Array
    upper: Array
    origin: Array
    solver: str
    coarse: bool

    def internal(self, params: Mapping[str, float]) -> Array:
        """The law's own parameters as a solver vector (p,)."""
        ...

    def external(self, theta: Array) -> dict[str, Array]:
        """Solver vectors (R, p) as the law's own parameters, each (R,)."""
        ...

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        """The fewest distinct values, among `rows`, of a variable that must have several (n where there is none)."""
        ...

    def model(self, theta: Array) -> Array:
        """The law (R, n) on the scale of `target`."""
        ...

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` and its slopes."""
        ...

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """sum_i weight_i J_i J_i' + v_i d2 model_i / d theta2 (R, p, p); `factors` were taken at `theta`."""
        ...

    def starts(self, count: int) -> Array:
        """`count` starts (count, p) that fit the data well or lie far apart."""
        ...

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """A start (R, p) for each data set (R, n), from nothing."""
        ...

    def at_bound(self, theta: Array) -> list[str]:
        """Free parameters at, or running to, a bound."""
        ...


@dataclass(frozen=True)
class Need:
    """`count` distinct values of `symbol`, which `what` needs; `instead` ends the sentence that asks for them."""

    symbol: str
    count: int
    what: str
    instead: str = ""


@dataclass(frozen=True)
class Law:
    """y as a function of columns and parameters, and everything that is particular to it.

    function    (parameters, columns) -> y, where parameters are (R, 1) and columns (n,) or (R, n).
    residual    "log": residuals are those of ln y, Huber at 1e-3; "linear": of y itself, least squares.
    unit_range  y lies in [0, 1] and may be 0. positive: columns are above 0.
    linear      symbols that enter as they are, not through their logarithm.
    needs       distinct values of the first symbol.
    max_decades of extrapolation.
    derived     parameters, as arrays of draws -> quantities that follow from them.
    check       raises FitError for columns that the law refuses; gets the symbols, and y in a fit.
    questions   what `harness ask` may put to it: "run" (which N and D, for a law of both), "loss" (which compute or loss,
                for a law of C alone), or None.
    optimum     parameters, C -> the N of least loss where C = 6ND, in closed form; None: it is searched for.
    contour     parameters, loss, u from 0 to 30 -> N and D along the contour of this loss, in closed form; None: by bisection.
    made_from   columns that the law's points can be made from, where a table has not the points.
    simpler     the law that is preferred unless this one is shown to be needed.
    analytic    `function` takes complex parameters.
    """

    name: str
    formula: str
    y: str
    symbols: tuple[str, ...]
    coordinates: tuple[Coordinate, ...]
    function: Callable[[Values, Values], Array]
    units: str = ""
    source: str = ""
    residual: Residual = "log"
    unit_range: bool = False
    positive: bool = True
    linear: tuple[str, ...] = ()
    needs: int = 3
    max_decades: float = 2.0
    derived: Callable[[Values], dict[str, Array]] | None = None
    check: Callable[[Values], None] | None = None
    questions: Question | None = None
    optimum: Callable[[Values, Array], Array] | None = None
    contour: Callable[[Values, float, Array], tuple[Array, Array]] | None = None
    made_from: tuple[str, ...] = ()
    simpler: str | None = None
    analytic: bool = True

    @classmethod
    def from_function(
        cls,
        name: str,
        function: Callable[..., Any],
        *,
        symbols: Sequence[str],
        parameters: Mapping[str, Parameter],
        y: str = "loss",
        residual: Residual = "log",
        formula: str | None = None,
        units: str = "",
        source: str = "",
        unit_range: bool = False,
        positive: bool = True,
        max_decades: float = 2.0,
        questions: Question | None = None,
        derived: Callable[[Values], dict[str, Array]] | None = None,
        check: Callable[[Values], None] | None = None,
    ) -> Law:
        """A law of a caller's function: `function(columns, **parameters)` returns y at every row.

        `columns` maps each of `symbols` to an array. Written with numpy's arithmetic, the function also takes parameters as
        columns (R, 1) and is called once for many; where it does not, it is called once for each vector, which is slow.
        Raises FitError for definitions that contradict themselves.
        """
        if not name or not name.replace("_", "").replace("-", "").isalnum():
            raise FitError(
                f"name={name!r} names no law: files and tables quote it. Give letters, digits, - and _ only."
            )
        if isinstance(symbols, str) or not symbols or len(set(symbols)) < len(symbols) or y in symbols:
            raise FitError(
                f"law {name}: symbols={symbols!r} must be the distinct columns that {y!r} depends on, without {y!r} itself. Give a "
                "sequence such as ('N', 'D')."
            )
        if residual not in RESIDUALS:
            raise FitError(
                f"law {name}: residual={residual!r} is unknown. Choose 'log' for the logarithm of {y}, 'linear' for {y} itself."
            )
        if questions is not None and set(symbols) != ({"N", "D"} if questions == "run" else {"C"}):
            raise FitError(
                f"law {name}: questions={questions!r} are put to laws of {'N and D' if questions == 'run' else 'C'}, and this one has "
                f"{', '.join(symbols)}. Give None."
            )
        if not parameters:
            raise FitError(f"law {name}: parameters is empty, so nothing is to be fitted. Give one Parameter for each.")
        try:
            inspect.signature(function).bind({}, **parameters)
        except (TypeError, ValueError) as e:
            raise FitError(
                f"law {name}: function cannot be called as function(columns, {', '.join(f'{p}=...' for p in parameters)}): {e}. Let "
                "its arguments and `parameters` have the same names."
            ) from e
        return cls(
            name, formula or f"{y} = {name}({', '.join([*symbols, *parameters])})", y, tuple(symbols),
            tuple(p.coordinate(n) for n, p in parameters.items()), _CallersFunction(name, function), units, source,
            residual, unit_range, positive, linear=tuple(symbols), needs=1, max_decades=max_decades,
            derived=derived, check=check, questions=questions, analytic=False,
        )  # fmt: skip

    # --- what it says of itself --------------------------------------------------------------------------------------
    @property
    def params(self) -> list[str]:
        """Names of the parameters, in the order of the solver's vector."""
        return [c.name for c in self.coordinates]

    @property
    def exponents(self) -> list[str]:
        """Names of the parameters that are exponents."""
        return [c.name for c in self.coordinates if c.kind == "exponent"]

    @property
    def floor(self) -> str | None:
        """Name of what is left of y at infinity, if the law has such a parameter."""
        return next((c.name for c in self.coordinates if c.kind == "floor"), None)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Coefficients and their exponents, whose correlation is judged."""
        return []

    @property
    def delta(self) -> float:
        """Huber's delta where the caller gives none: 1e-3 of the logarithm, as in the literature; 1 (least squares) of y."""
        return 1e-3 if self.residual == "log" else 1.0

    def coordinate(self, name: str) -> Coordinate:
        """The coordinate of one parameter."""
        return next(c for c in self.coordinates if c.name == name)

    def of(self, y: str, *symbols: str) -> bool:
        """Whether it gives `y` as a function of exactly these symbols."""
        return self.y == y and set(self.symbols) == set(symbols)

    def distinct_needed(self, fixed: Mapping[str, float]) -> list[Need]:
        """How many distinct values a fit needs of which symbol."""
        anchors = [c.anchor for c in self.coordinates if c.anchor]
        counts = {symbol: 3 for exponent, symbol, _ in anchors if exponent not in fixed}
        counts |= {self.symbols[0]: self.needs}
        return [Need(s, k, f"law {self.name}") for s, k in counts.items()]

    def is_crossed(self, fixed: Mapping[str, float]) -> bool:
        """Whether the effects of the first two symbols are both fitted, so that data must tell them apart."""
        terms = [c.name for c in self.coordinates if c.anchor]
        return self.symbols[:2] == ("N", "D") and bool(terms) and not any(t in fixed for t in terms)

    def refuse_design(self, columns: Values, y: Array, fixed: Mapping[str, float]) -> None:
        """FitError for designs that only this kind of law cannot use."""

    def search(self) -> tuple[str, str]:
        """In words: where the search starts, and its bounds."""
        return f"best and far-apart 16 (then 80) of {MAX_POOL} points of the box {self._box(start=True)}", self._box(
            start=False
        )

    def _box(self, start: bool) -> str:
        def one(c: Coordinate) -> str:
            low, high = c.start if start else (c.low, c.high)
            of = f"ln {c.name}" if c.log else c.name if c.unit == 1 else f"{c.name} / {c.unit:g}"
            what = " at the data's centre" if c.anchor else f" - mean of {c.centre}" if c.centre else ""
            return f"{of}{' / y' if c.share else ''}{what} {low:g}..{high:g}"

        return "; ".join(one(c) for c in self.coordinates)

    # --- with data ---------------------------------------------------------------------------------------------------
    def read(self, table: Table, *, with_y: bool = False) -> dict[str, Array]:
        """The law's columns of a table, checked; FitError for what it refuses."""
        columns = {s: column(table, s, self) for s in ((*self.symbols, self.y) if with_y else self.symbols)}
        if self.check is not None:
            self.check(columns)
        return columns

    def value(self, params: Mapping[str, Array | float], table: Table) -> Array:
        """y at the rows of `table`. Parameters may be arrays of shape (R, 1): then the result is (R, n)."""
        data = {s: np.asarray(table[s], dtype=np.float64) for s in self.symbols}
        result = self.function({k: np.asarray(v, dtype=np.float64) for k, v in params.items()}, data)
        shape = np.broadcast_shapes(result.shape, next(iter(data.values())).shape)
        return np.array(np.broadcast_to(result, shape))

    def bind(self, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> BoundLaw:
        """The law with its data, as the solver sees it."""
        return BoundFunction(self, table, y, weight, fixed)


@dataclass(frozen=True)
class _CallersFunction:
    """A caller's function(columns, **parameters) as a law's function(parameters, columns)."""

    law: str
    function: Callable[..., Any]

    def __call__(self, p: Values, x: Values) -> Array:
        shape = np.broadcast_shapes(*(v.shape for v in (*p.values(), *x.values())))
        if len(shape) == 1:
            return self._one(p, x)
        rows = {k: np.broadcast_to(v, (shape[0], v.shape[-1])) for k, v in (*p.items(), *x.items())}

        def one(i: int) -> Array:
            return self._one({k: rows[k][i, 0] for k in p}, {k: rows[k][i] for k in x})

        last, whole = one(-1), self._side_by_side(p, x, shape)
        if whole is not None and np.allclose(whole[-1], last, rtol=TOLERANCE_BROADCAST, atol=0.0, equal_nan=True):
            return whole
        return np.stack([*(one(i) for i in range(shape[0] - 1)), last])

    def _side_by_side(self, p: Values, x: Values, shape: tuple[int, ...]) -> Array | None:
        """All vectors in one call; None where the function was written for one."""
        try:
            return np.broadcast_to(np.asarray(self.function(x, **p), dtype=np.float64), shape)
        except (TypeError, ValueError, IndexError, KeyError):
            return None

    def _one(self, p: Values, x: Values) -> Array:
        n = len(next(iter(x.values())))
        try:
            y = np.asarray(self.function(x, **p), dtype=np.float64)
        except KeyError as e:
            raise FitError(
                f"law {self.law}: its function asks for {e}, and its columns are {', '.join(x)}. Name it among the symbols."
            ) from e
        except Exception as e:
            at = ", ".join(f"{k}={float(np.ravel(v)[0]):.6g}" for k, v in p.items())
            raise FitError(
                f"law {self.law}: its function raised {type(e).__name__}: {e}, at {at}. Let it return numbers everywhere inside "
                "the bounds (NaN where it has none)."
            ) from e
        if y.shape not in ((), (n,)):
            raise FitError(
                f"law {self.law}: its function gives the shape {y.shape} for {n} rows, and one number per row is needed. Return an "
                "array as long as a column."
            )
        return np.broadcast_to(y, (n,))


class BoundFunction:
    """Any law with its data; see `BoundLaw`."""

    def __init__(self, law: Law, table: Table, y: Array, weight: Array, fixed: Mapping[str, float]) -> None:
        self.law, self.n, self.names = law, len(y), law.params
        self.fixed, self.weight = dict(fixed), weight
        self.coarse = True
        how = "complex-step derivatives" if law.analytic else "central differences"
        self.solver = f"starts from a box, damped Newton on the Huber sum, {how} (float64)"
        is_log = law.residual == "log"
        self.target = np.log(y) if is_log else y.copy()
        self._data = {s: np.asarray(table[s], dtype=np.float64) for s in law.symbols}
        self._mean = {s: float((x if s in law.linear else np.log(x)).mean()) for s, x in self._data.items()}
        self._unit = float(np.exp(np.log(y).mean())) if is_log else float(y.mean())
        self.lower = np.array([c.low for c in law.coordinates])
        self.upper = np.array([c.high for c in law.coordinates])
        self.free = np.array([n not in fixed for n in self.names])
        self.origin = np.zeros(len(self.names))
        if fixed:
            self.origin = np.where(self.free, 0.0, self.internal({n: fixed.get(n, 1.0) for n in self.names}))
            self.lower = np.where(self.free, self.lower, np.minimum(self.lower, self.origin))
            self.upper = np.where(self.free, self.upper, np.maximum(self.upper, self.origin))

    def _shift(self, c: Coordinate, params: Mapping[str, Array]) -> Array | float:
        """What is added to ln value (or to value) to make it the coordinate."""
        if c.name in self.fixed:
            return 0.0  # a fixed parameter must stay one coordinate whatever its partners do
        out: Array | float = -np.log(self._unit) if c.share and c.log else 0.0
        if c.anchor:
            exponent, symbol, factor = c.anchor
            out = out + factor * params[exponent] * self._mean[symbol]
        return out - self._mean[c.centre] if c.centre else out

    def _scale(self, c: Coordinate) -> float:
        """What a coordinate that is no logarithm is multiplied by."""
        return c.unit * (self._unit if c.share and not c.log and c.name not in self.fixed else 1.0)

    def internal(self, params: Mapping[str, float]) -> Array:
        theta = np.empty(len(self.names))
        values = {k: np.asarray(v, dtype=np.float64) for k, v in params.items()}
        for i, c in enumerate(self.law.coordinates):
            with np.errstate(divide="ignore"):
                raw = np.log(values[c.name]) if c.log else values[c.name]
            theta[i] = raw / self._scale(c) + self._shift(c, values)
        return theta

    def _decode(self, theta: Array) -> dict[str, Array]:
        """Coordinates (R, p), real or complex -> parameters (R, 1); anchors point at exponents, which come first."""
        out: dict[str, Array] = {}
        order = sorted(range(len(self.names)), key=lambda i: self.law.coordinates[i].anchor is not None)
        for i in order:
            c = self.law.coordinates[i]
            q = theta[:, i, None] - self._shift(c, out)
            out[c.name] = np.exp(q) if c.log else q * self._scale(c)
        return {name: out[name] for name in self.names}

    def external(self, theta: Array) -> dict[str, Array]:
        values = self._decode(theta)
        out = {n: values[n][:, 0] for n in self.names}
        return out | {n: np.full(len(theta), float(v)) for n, v in self.fixed.items()}

    def distinct(self, rows: NDArray[np.bool_]) -> int:
        columns = self._data.values() if self.law.analytic else ()
        return min((len(np.unique(x[rows])) for x in columns), default=self.n)

    def _value(self, theta: Array) -> Array:
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            f = self.law.function(self._decode(theta), self._data)
            return np.log(np.where(f.real > 1e-300, f, 1e-300)) if self.law.residual == "log" else f

    def model(self, theta: Array) -> Array:
        value = self._value(theta)
        return np.where(np.isfinite(value), value, NO_VALUE)

    def factors(self, theta: Array) -> tuple[Array, list[Factor]]:
        """`model` and its slopes, zero for coordinates that the caller fixed."""
        jac = self._slopes(theta)
        one = np.ones((self.n, 1))
        return self.model(theta), [Factor(k, jac[k], one) for k in range(len(jac))]

    def _slopes(self, theta: Array) -> Array:
        """(p, R, n)"""
        out = np.zeros((len(self.names), len(theta), self.n))
        for k in np.flatnonzero(self.free):
            slope = self._complex_step(theta, int(k)) if self.law.analytic else self._difference(theta, int(k))
            out[k] = np.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
        return out

    def _complex_step(self, theta: Array, k: int) -> Array:
        unit = np.zeros(theta.shape[1])
        unit[k] = COMPLEX_STEP
        shifted = cast(Array, theta + 1j * unit)  # complex where the types say real
        return self._value(shifted).imag / COMPLEX_STEP

    def _difference(self, theta: Array, k: int) -> Array:
        """The slope between two points inside the bounds."""
        at = np.clip(theta, self.lower, self.upper)
        step = FIRST_STEP * np.maximum(1.0, np.abs(at[:, k]))
        up, down = at.copy(), at.copy()
        up[:, k] = np.minimum(at[:, k] + step, self.upper[k])
        down[:, k] = np.maximum(at[:, k] - step, self.lower[k])
        with np.errstate(invalid="ignore"):
            return (self._value(up) - self._value(down)) / (up[:, k] - down[:, k])[:, None]

    def hessian(self, theta: Array, factors: list[Factor], weight: Array, v: Array) -> Array:
        """See `BoundLaw`; second derivatives are differences of slopes around `theta`."""
        count, p = theta.shape
        step = SECOND_STEP if self.law.analytic else SECOND_STEP_OF_DIFFERENCES
        moves = step * np.concatenate([np.eye(p)[self.free], -np.eye(p)[self.free]])
        slopes = self._slopes((theta[:, None, :] + moves).reshape(-1, p))  # one call for all moves
        pulled = np.einsum("rn,prmn->rmp", v, slopes.reshape(p, count, len(moves), self.n))
        half = len(moves) // 2
        out = np.zeros((count, p, p))
        out[:, self.free] = (pulled[:, :half] - pulled[:, half:]) / (2 * step)
        return (out + out.transpose(0, 2, 1)) / 2 + gram(factors, weight)

    # --- starts ------------------------------------------------------------------------------------------------------
    def pool(self, seed: int = 0) -> Array:
        """Points of the start box (MAX_POOL, p), uniform, the same for every call."""
        box = np.array([c.start for c in self.law.coordinates])
        theta = np.random.default_rng(seed).uniform(box[:, 0], box[:, 1], (MAX_POOL, len(box)))
        return np.where(self.free, np.clip(theta, self.lower, self.upper), self.origin)

    def starts(self, count: int) -> Array:
        """The best of the pool and, for half of them, points far from those already chosen among its best tenth."""
        pool = self.pool()
        miss = (np.abs(self.model(pool) - self.target) * np.sqrt(self.weight)).sum(1)
        order = np.argsort(miss, kind="stable")
        chosen = list(order[: count // 2])
        rest = order[: MAX_POOL // 10]
        width = np.maximum(pool.std(0), 1e-12)
        while len(chosen) < count:
            apart = np.min([(((pool[rest] - pool[k]) / width) ** 2).sum(1) for k in chosen], axis=0)
            chosen.append(int(rest[apart.argmax()]))
        return pool[chosen].copy()

    def cold_start(self, target: Array, weight: Array, per_axis: int = 10) -> Array:
        """The best of `COLD_POOL` points of the pool for each data set (R, n): (R, p)."""
        pool = self.pool()[:COLD_POOL]
        values = self.model(pool)
        target, weight = np.atleast_2d(target), np.atleast_2d(weight)
        miss = np.stack([(np.abs(v - target) * np.sqrt(weight)).sum(1) for v in values], axis=1)
        return pool[miss.argmin(1)].copy()

    def at_bound(self, theta: Array) -> list[str]:
        near = (theta <= self.lower + 1e-6) | (theta >= self.upper - 1e-6)
        return [n for n, at, free in zip(self.names, near, self.free, strict=True) if at and free]
