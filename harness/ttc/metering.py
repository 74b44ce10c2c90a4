"""Joules and seconds of prefill and decoding: windows long enough to trust, and a model of the numbers of samples in between.

A decoding pass costs c0 + c1 rows + c2 rows x context (non-negative least squares on relative errors), so a window costs
c0 passes + c1 row passes + c2 context sum. One metered window is held out of the fit and its prediction is published beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

from harness.models.flops import prefill_flop
from harness.power.meter import Meter
from harness.records import Measured, SpendRow
from harness.records.ttc import Window
from harness.tasks.task import Control, Problems, Task
from harness.ttc.decode import Decoder, Drawn, Lockstep, batches, finish, uniforms
from harness.ttc.work_units import side_by_side
from harness.units import S_PER_NS


@dataclass(frozen=True)
class Load:
    """What decoding does: passes, rows summed over passes, rows x attended positions summed over passes."""

    passes: float = 0.0
    row_passes: float = 0.0
    context: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.passes + other.passes, self.row_passes + other.row_passes, self.context + other.context)

    def times(self, factor: float) -> Load:
        return Load(self.passes * factor, self.row_passes * factor, self.context * factor)

    def per(self, queries: float) -> Load:
        return self.times(1 / queries)

    def numbers(self) -> np.ndarray:
        return np.array([self.passes, self.row_passes, self.context])


@dataclass
class CostModel:
    """Seconds and joules per query from metered windows. `exact`: the windows are of this very cell, so their n are metered."""

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
        found = [w for w in self.windows if w.phase == "decode" and w.n == n]
        return max(found, key=lambda w: w.queries, default=None)

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


def meter_windows(
    decoder: Decoder,
    task: Task,
    problems: Problems,
    control: Control,
    *,
    samples: list[int],
    temperature: float,
    seed: int,
    batch_rows: int,
    least_s: float,
    meter: Meter,
    sync: Callable[[], None],
    stop: Callable[[], None],
    books: SpendRow,
) -> tuple[list[Window], list[Load]]:
    """Metered windows of one control, with the load of each per repetition; `windows[0]` is the prefill of a block of queries.

    Wall seconds and joules of a window are per repetition. Decoding starts from the prompts' cache each time. `stop` raises to interrupt.
    Tokens and FLOP of everything, warm-up and repetitions included, are added to `books` as they are spent.
    """
    block = problems.take(np.arange(min(side_by_side(1, batch_rows), len(problems))))
    windows: list[Window] = []
    room = task.max_new(control)
    loads: list[Load] = []

    def repeat(work: Callable[[], Drawn | None], phase: str, n: int, queries: int, context: float) -> Drawn | None:
        def spend() -> Drawn | None:
            drawn = work()
            books.flop += dense if drawn is None else drawn.executed_flop
            books.tokens += int(prompts.lengths.sum()) if drawn is None else drawn.row_passes
            return drawn

        spend()  # warm-up
        sync()
        began, times, last = time.monotonic_ns(), 0, None
        while True:
            last = spend()
            times += 1
            sync()
            ended = time.monotonic_ns()
            stop()
            if (ended - began) * S_PER_NS >= least_s:
                break
        energy = meter.energy(began, ended, steps=times)
        passes = last.passes if last is not None else 1
        if last is not None and last.row_passes:
            context = last.context_sum / last.row_passes
        wall_s = (ended - began) * S_PER_NS / times
        windows.append(Window(phase, n, queries * n, queries, passes, context, wall_s, _share(energy, times)))
        loads.append(Load() if last is None else Load(last.passes, last.row_passes, last.context_sum))
        return last

    prompts = next(batches(task, block, control, len(block)))
    dense = len(block) * prefill_flop(decoder.shape, int(prompts.lengths.max()), causal=False, last_head=True)

    def prefill() -> None:
        decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)

    repeat(prefill, "prefill", 1, len(block), float(prompts.lengths.mean()))
    # A single query and a few side by side tell the cost of a pass from that of its rows
    shapes = [(min(side_by_side(n, batch_rows), len(block)), n) for n in samples if n <= batch_rows]
    shapes += [(q, 1) for q in (1, 8) if q < len(block)]
    for queries, n in shapes:
        part = block.take(np.arange(queries))
        few = next(batches(task, part, control, queries))
        logits, prefix = decoder.prefill(few.tokens, few.positions, few.pads)
        books.flop += queries * prefill_flop(decoder.shape, few.tokens.shape[1], causal=False, last_head=True)
        books.tokens += int(few.lengths.sum())
        chances = uniforms(seed, queries * n, room)
        order = (few.problems[:, None] * n + np.arange(n)).ravel()

        def decode(
            part: Problems = part, few=few, logits=logits, prefix=prefix, n: int = n, order=order, chances=chances
        ) -> Drawn:
            rows = len(order)
            out = Drawn(
                problem=np.repeat(np.arange(len(part)), n),
                tokens=np.full((rows, room), task.pad, dtype=np.int64),
                lengths=np.zeros(rows, dtype=np.int64),
                forced=np.zeros(rows, dtype=np.int64),
                logprob=np.zeros(rows),
            )
            finish(Lockstep(decoder, task, part, control, few, n, logits, prefix, out), order, temperature, chances)
            return out

        repeat(decode, "decode", n, queries, 0.0)
    return windows, loads


def _share(energy: Measured, times: int) -> Measured:
    """A window's energy per repetition."""

    def part(value: float | None) -> float | None:
        return None if value is None else value / times

    copy = Measured(**vars(energy))
    copy.energy_j, copy.energy_se_j, copy.energy_edge_j, copy.energy_net_j = (
        part(energy.energy_j),
        part(energy.energy_se_j),
        part(energy.energy_edge_j),
        part(energy.energy_net_j),
    )
    return copy


def cost_model(windows: list[Window], loads: list[Load], *, exact: bool) -> CostModel:
    """Fit the cost of a pass. Marks one decoding window of a middle number of samples as held out and writes its prediction."""
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
    kept = [(w, x) for w, x in decode if not w.held_out]
    model.pass_s = _fit([x for _, x in kept], [w.wall_s for w, _ in kept])
    joules = [(x, w.energy.energy_j) for w, x in kept if w.energy.energy_j is not None]
    if len(joules) == len(kept):
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
