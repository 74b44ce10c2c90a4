"""A law: any function of columns and parameters, and everything that is particular to it.

Nothing else in the package asks for a law's name. `Law.from_function` makes one of a caller's
function; `Law.bind` gives the solver a law with its data (`solver.bound`).

Shapes: R parameter vectors side by side, n rows of data, p parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.errors import FitError
from harness.laws.gram import Array
from harness.laws.parameter import Coordinate, Parameter
from harness.laws.solver.bound import MAX_POOL, BoundFunction, BoundLaw
from harness.laws.table import Table, column

Residual = Literal["log", "linear"]
Question = Literal["run", "loss"]
Values = Mapping[str, Array]
RESIDUALS: tuple[Residual, ...] = ("log", "linear")

# relative: a function that broadcasts gives the same alone and side by side
TOLERANCE_BROADCAST = 1e-9


@dataclass(frozen=True)
class Need:
    """`count` distinct values of `symbol`, which `what` needs; `instead` ends the sentence that
    asks for them."""

    symbol: str
    count: int
    what: str
    instead: str = ""


@dataclass(frozen=True)
class Law:
    """y as a function of columns and parameters, and everything that is particular to it.

    function    (parameters, columns) -> y, where parameters are (R, 1) and columns (n,) or (R, n).
    residual    "log": residuals are those of ln y, Huber at 1e-3; "linear": of y itself, least
                squares.
    unit_range  y lies in [0, 1] and may be 0. positive: columns are above 0.
    linear      symbols that enter as they are, not through their logarithm.
    needs       distinct values of the first symbol.
    max_decades of extrapolation.
    derived     parameters, as arrays of draws -> quantities that follow from them.
    check       raises FitError for columns that the law refuses; gets the symbols, and y in a fit.
    questions   what `harness ask` may put to it: "run" (which N and D, for a law of both), "loss"
                (which compute or loss, for a law of C alone), or None.
    optimum     parameters, C -> the N of least loss where C = 6ND, in closed form; None: it is
                searched for.
    contour     parameters, loss, u from 0 to 30 -> N and D along the contour of this loss, in
                closed form; None: by bisection.
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

        `columns` maps each of `symbols` to an array. Written with numpy's arithmetic, the function
        also takes parameters as columns (R, 1) and is called once for many; where it does not, it
        is called once for each vector, which is slow. Raises FitError for definitions that
        contradict themselves. Its 15 parameters are the fields of a law.
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

    # --- what it says of itself
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
        """Huber's delta where the caller gives none: 1e-3 of the logarithm, as in the literature; 1
        (least squares) of y."""
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
        """Whether the effects of the first two symbols are both fitted, so that data must tell them
        apart."""
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
        def describe(c: Coordinate) -> str:
            low, high = c.start if start else (c.low, c.high)
            label = f"ln {c.name}" if c.log else c.name if c.unit == 1 else f"{c.name} / {c.unit:g}"
            what = " at the data's centre" if c.anchor else f" - mean of {c.centre}" if c.centre else ""
            return f"{label}{' / y' if c.share else ''}{what} {low:g}..{high:g}"

        return "; ".join(describe(c) for c in self.coordinates)

    # --- with data
    def read(self, table: Table, *, with_y: bool = False) -> dict[str, Array]:
        """The law's columns of a table, checked; FitError for what it refuses."""
        columns = {s: column(table, s, self) for s in ((*self.symbols, self.y) if with_y else self.symbols)}
        if self.check is not None:
            self.check(columns)
        return columns

    def value(self, params: Mapping[str, Array | float], table: Table) -> Array:
        """y at the rows of `table`. Parameters may be arrays of shape (R, 1): then the result is
        (R, n)."""
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
            return self._single(p, x)
        rows = {k: np.broadcast_to(v, (shape[0], v.shape[-1])) for k, v in (*p.items(), *x.items())}

        def single(i: int) -> Array:
            return self._single({k: rows[k][i, 0] for k in p}, {k: rows[k][i] for k in x})

        last, whole = single(-1), self._side_by_side(p, x, shape)
        if whole is not None and np.allclose(whole[-1], last, rtol=TOLERANCE_BROADCAST, atol=0.0, equal_nan=True):
            return whole
        return np.stack([*(single(i) for i in range(shape[0] - 1)), last])

    def _side_by_side(self, p: Values, x: Values, shape: tuple[int, ...]) -> Array | None:
        """All vectors in one call; None where the function was written for one."""
        try:
            return np.broadcast_to(np.asarray(self.function(x, **p), dtype=np.float64), shape)
        except (TypeError, ValueError, IndexError, KeyError):
            return None

    def _single(self, p: Values, x: Values) -> Array:
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
