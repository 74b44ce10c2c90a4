"""Joules and seconds of prefill and decoding: windows long enough to trust, and a model of the
numbers of samples in between.

A decoding pass costs c0 + c1 rows + c2 rows x context (non-negative least squares on relative
errors), so a window costs c0 passes + c1 row passes + c2 context sum. One metered window is held
out of the fit and its prediction is published beside it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from harness.models.flops import prefill_flop
from harness.power.meter import Meter
from harness.records import Measured, SpendRow
from harness.records.ttc import Window
from harness.ttc.decode import Drawn, Lockstep, Prompts, Request, Sampling, batches, finish, uniforms
from harness.ttc.work_units import side_by_side
from harness.units import S_PER_NS


@dataclass(frozen=True)
class Load:
    """What decoding does: passes, rows summed over passes, rows x attended positions summed over
    passes.
    """

    passes: float = 0.0
    row_passes: float = 0.0
    context: float = 0.0

    def __add__(self, more: Load) -> Load:
        return Load(self.passes + more.passes, self.row_passes + more.row_passes, self.context + more.context)

    def times(self, factor: float) -> Load:
        return Load(self.passes * factor, self.row_passes * factor, self.context * factor)

    def per(self, queries: float) -> Load:
        return self.times(1 / queries)

    def numbers(self) -> np.ndarray:
        return np.array([self.passes, self.row_passes, self.context])


@dataclass
class CostModel:
    """Seconds and joules per query from metered windows.

    `exact`: the windows are of this very cell, so their n are metered.
    """

    windows: list[Window]
    exact: bool
    prefill_s: float | None = None  # per query
    prefill_energy: Measured = field(default_factory=Measured)
    pass_s: np.ndarray | None = None  # (3,) seconds per pass, per row, per row and position
    pass_j: np.ndarray | None = None
    energy_reason: str | None = None

    def _window(self, n: int | None) -> Window | None:
        """The decoding window of a whole block of queries at n samples."""
        if not self.exact or n is None:
            return None
        windows = [w for w in self.windows if w.phase == "decode" and w.n == n]
        return max(windows, key=lambda w: w.queries, default=None)

    def seconds(self, load: Load, n: int | None) -> tuple[float | None, str | None]:
        """Per query, and its basis. `n`: samples side by side, None for what was never metered."""
        if self.prefill_s is None or self.pass_s is None:
            return None, None
        if (w := self._window(n)) is not None:
            return self.prefill_s + w.wall_s / w.queries, "metered"
        return self.prefill_s + float(self.pass_s @ load.numbers()), "modelled"

    def joules(self, load: Load, n: int | None) -> tuple[float | None, float | None, str | None]:
        """Per query: joules, standard error (metered ones only), basis."""
        prefill = self.prefill_energy
        if prefill.energy_j is None or self.pass_j is None:
            return None, None, None
        w = self._window(n)
        if w is not None and w.energy.energy_j is not None:
            errors = [prefill.energy_se_j, w.energy.energy_se_j]
            scaled = [errors[0], None if errors[1] is None else errors[1] / w.queries]
            se = None if None in scaled else float(np.hypot(*scaled))  # type: ignore[arg-type]
            return prefill.energy_j + w.energy.energy_j / w.queries, se, "metered"
        return prefill.energy_j + float(self.pass_j @ load.numbers()), None, "modelled"


class Executed(NamedTuple):
    """What one repetition of a window's work did."""

    tokens: int
    flop: float
    passes: int
    context: float  # mean positions per row of a pass
    load: Load


@dataclass(frozen=True)
class Timer:
    """How a window is metered: its work is repeated until it has lasted `min_s`.

    `stop` raises to interrupt. Tokens and FLOP of everything, warm-up and repetitions included, are
    added to `books` as they are spent.
    """

    min_s: float
    meter: Meter
    sync: Callable[[], None]
    stop: Callable[[], None]
    books: SpendRow

    def window(self, phase: str, n: int, queries: int, work: Callable[[], Executed]) -> tuple[Window, Load]:
        """The window of `work`, its seconds and joules per repetition, and the load of a
        repetition.
        """
        self._run(work)  # warm-up
        self.sync()
        start_ns, repetitions = time.monotonic_ns(), 0
        while True:
            executed = self._run(work)
            repetitions += 1
            self.sync()
            end_ns = time.monotonic_ns()
            self.stop()
            if (end_ns - start_ns) * S_PER_NS >= self.min_s:
                break
        wall_s = (end_ns - start_ns) * S_PER_NS / repetitions
        energy = _share(self.meter.energy(start_ns, end_ns, steps=repetitions), repetitions)
        window = Window(phase, n, queries * n, queries, executed.passes, executed.context, wall_s, energy)
        return window, executed.load

    def _run(self, work: Callable[[], Executed]) -> Executed:
        executed = work()
        self.book(executed.tokens, executed.flop)
        return executed

    def book(self, tokens: int, flop: float) -> None:
        self.books.tokens += tokens
        self.books.flop += flop


def meter_windows(
    request: Request, samples: list[int], sampling: Sampling, timer: Timer
) -> tuple[list[Window], list[Load]]:
    """Metered windows of one control, with the load of each; the first is the prefill of a block of
    queries.

    Decoding starts from the prompts' cache each time.
    """
    block = request.take(np.arange(min(side_by_side(1, sampling.batch_rows), len(request.problems))))
    queries = len(block.problems)
    metered = [timer.window("prefill", 1, queries, _prefill(block))]
    # A single query and a few side by side tell the cost of a pass from that of its rows
    shapes = [(min(side_by_side(n, sampling.batch_rows), queries), n) for n in samples if n <= sampling.batch_rows]
    shapes += [(q, 1) for q in (1, 8) if q < queries]
    for q, n in shapes:
        metered.append(timer.window("decode", n, q, _decode(block.take(np.arange(q)), n, sampling, timer)))
    return [window for window, _ in metered], [load for _, load in metered]


def _prefill(request: Request) -> Callable[[], Executed]:
    decoder, prompts = request.decoder, _prompts(request)
    tokens, flop = _prefill_cost(request, prompts)
    executed = Executed(tokens, flop, 1, float(prompts.lengths.mean()), Load())

    def work() -> Executed:
        decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)
        return executed

    return work


def _decode(request: Request, n: int, sampling: Sampling, timer: Timer) -> Callable[[], Executed]:
    """Decode `n` samples of every problem, from a prefill that is done, and booked, here."""
    prompts = _prompts(request)
    logits, prefix = request.decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)
    timer.book(*_prefill_cost(request, prompts))
    rows = (prompts.problems[:, None] * n + np.arange(n)).ravel()
    chances = uniforms(sampling.seed, len(rows), request.task.max_new(request.control))

    def work() -> Executed:
        out = Drawn.empty(request, n)
        finish(Lockstep(request, prompts, n, logits, prefix, out), rows, sampling.temperature, chances)
        context = out.context_sum / out.row_passes if out.row_passes else 0.0
        load = Load(out.passes, out.row_passes, out.context_sum)
        return Executed(out.row_passes, out.executed_flop, out.passes, context, load)

    return work


def _prompts(request: Request) -> Prompts:
    return next(batches(request, len(request.problems)))


def _prefill_cost(request: Request, prompts: Prompts) -> tuple[int, float]:
    """Tokens and FLOP of one padded prefill."""
    shape, longest = request.decoder.shape, prompts.tokens.shape[1]
    flop = len(prompts.lengths) * prefill_flop(shape, longest, causal=False, last_head=True)
    return int(prompts.lengths.sum()), flop


def _share(energy: Measured, times: int) -> Measured:
    """A window's energy per repetition."""

    def part(value: float | None) -> float | None:
        return None if value is None else value / times

    energies = ("energy_j", "energy_se_j", "energy_edge_j", "energy_net_j")
    return dataclasses.replace(energy, **{name: part(getattr(energy, name)) for name in energies})


def cost_model(windows: list[Window], loads: list[Load], *, exact: bool) -> CostModel:
    """Fit the cost of a pass.

    Marks one decoding window of a middle number of samples as held out and writes its prediction.
    """
    first = windows[0]
    decode = [(w, x) for w, x in zip(windows, loads, strict=True) if w.phase == "decode" and x.passes]
    model = CostModel(windows, exact)
    model.prefill_s = first.wall_s / first.queries
    model.prefill_energy = _share(first.energy, first.queries)
    model.energy_reason = next(
        (w.energy.reason or "a window's energy was refused" for w in windows if w.energy.energy_j is None), None
    )
    if not decode:  # one token per answer: nothing is ever fed
        model.pass_s = np.zeros(3)
        model.pass_j = None if model.energy_reason else np.zeros(3)
        return model
    widest: dict[int, Window] = {}
    for w, _ in decode:
        widest[w.n] = max(w, widest.get(w.n, w), key=lambda w: w.queries)
    middle = [widest[n] for n in sorted(widest)]
    if len(decode) > 3 and len(middle) > 2:
        middle[len(middle) // 2].held_out = True
    fitted = [(w, x) for w, x in decode if not w.held_out]
    model.pass_s = _fit([x for _, x in fitted], [w.wall_s for w, _ in fitted])
    joules = [(x, w.energy.energy_j) for w, x in fitted if w.energy.energy_j is not None]
    if len(joules) == len(fitted):
        model.pass_j = _fit([x for x, _ in joules], [j for _, j in joules])
    for w, x in decode:
        if w.held_out:
            w.predicted_wall_s = float(model.pass_s @ x.numbers())
            w.predicted_energy_j = None if model.pass_j is None else float(model.pass_j @ x.numbers())
    return model


def _fit(loads: list[Load], cost: list[float]) -> np.ndarray:
    """Non-negative coefficients (3,) that minimise squared relative errors."""
    weight = 1 / np.array(cost)
    matrix = np.stack([x.numbers() for x in loads]) * weight[:, None]
    scale = matrix.max(axis=0)
    return nnls(matrix / scale, np.ones(len(cost)))[0] / scale
