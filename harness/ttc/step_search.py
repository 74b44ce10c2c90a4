"""Strategies that must touch the model besides drawing: search by steps against the step verifier. What only picks among samples is in `laws/samples.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from harness.tasks.task import Control, Problems, Task
from harness.ttc.decode import Decoder, Drawn, Lockstep, batches, pick, uniforms


def step_search(
    decoder: Decoder,
    task: Task,
    problems: Problems,
    control: Control,
    *,
    width: int,
    keep: int,
    temperature: float,
    seed: int,
    batch_rows: int,
) -> Drawn:
    """Beam search by steps of thought: each kept path proposes `width` steps, the `keep` best of a problem's proposals go on.

    Better is, in this order: more verified steps, not a copy of a better path, larger ln p. The search starts with `keep` copies of the prompt.
    The first tokens of a path's proposals are drawn from the same logits, so where a step is one token width costs no pass; where it is
    more, the further tokens are decoded for every proposal, and those passes are booked as useful. Returns one row per problem, its best
    path; the counts are those of the whole search.
    """
    room, step = task.max_new(control), task.step_tokens
    out = Drawn(
        problem=np.arange(len(problems)),
        tokens=np.full((len(problems), room), task.pad, dtype=np.int64),
        lengths=np.zeros(len(problems), dtype=np.int64),
        forced=np.zeros(len(problems), dtype=np.int64),
        logprob=np.zeros(len(problems)),
    )
    each = keep * width
    chances = uniforms(seed, len(problems) * each, room).reshape(len(problems), each, room)
    for prompts in batches(task, problems, control, max(1, batch_rows // each)):
        logits, prefix = decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)
        out.book_prefill(decoder.shape, prompts.lengths)
        batch = Lockstep(decoder, task, problems, control, prompts, keep, logits, prefix, out)
        paths = _Paths.start(len(batch.of), room, task.pad)
        chance = chances[prompts.problems].reshape(-1, room)
        for start in range(0, room, step):
            stop = min(start + step, room)
            paths = _propose(batch, paths, width, temperature, chance, start, stop)
            best = _best(task, problems.take(prompts.problems.repeat(each)), control, paths, each, keep)
            paths = paths.take(best)
            if stop == room or paths.done.all():
                break
            # Where a step is one token the proposals have no cache of their own yet: they go on from their path's
            batch.select(best if stop - start > 1 else best // width)
            batch.feed(paths.tokens[:, :stop], ~paths.done)
        first = paths.take(np.arange(0, len(paths.done), keep))
        for name in ("tokens", "lengths", "forced", "logprob"):
            getattr(out, name)[prompts.problems] = getattr(first, name)
    return out


@dataclass
class _Paths:
    tokens: np.ndarray  # (R, T)
    lengths: np.ndarray  # (R,)
    forced: np.ndarray
    logprob: np.ndarray
    done: np.ndarray  # bool

    @classmethod
    def start(cls, rows: int, room: int, pad: int) -> _Paths:
        counts = (np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64))
        return cls(np.full((rows, room), pad, dtype=np.int64), *counts, np.zeros(rows), np.zeros(rows, dtype=bool))

    def take(self, rows: np.ndarray) -> _Paths:
        return _Paths(*(getattr(self, f.name)[rows] for f in fields(self)))


def _propose(
    batch: Lockstep, paths: _Paths, width: int, temperature: float, chances: np.ndarray, start: int, stop: int
) -> _Paths:
    """`width` continuations of each path by the tokens `start` to `stop`, fed but for the last token."""
    fan = np.repeat(np.arange(len(paths.done)), width)
    paths, of, logits = paths.take(fan), batch.of.take(fan), batch.logits.repeat_interleave(width, 0)
    for t in range(start, stop):
        rule = batch.task.rule(of, batch.control, paths.tokens[:, :t])
        token, forced, logprob = pick(logits, rule, temperature, chances[:, t])
        alive = ~paths.done
        paths.tokens[alive, t] = token[alive]
        paths.lengths[alive] = t + 1
        paths.forced += forced & alive
        paths.logprob += np.where(alive, logprob, 0.0)
        paths.done |= alive & (token == batch.task.eos)
        if t + 1 < stop:
            if t == start:
                batch.select(fan)
            batch.feed(paths.tokens[:, : t + 1], ~paths.done)
            logits = batch.logits
    return paths


def _best(task: Task, of: Problems, control: Control, paths: _Paths, each: int, keep: int) -> np.ndarray:
    """The `keep` best of every `each` neighbouring paths, ascending by problem, the best first."""
    problem = np.arange(len(paths.done)) // each
    verified = task.grade(of, control, paths.tokens, paths.lengths).verified
    copy = np.ones(len(problem), dtype=bool)
    copy[np.unique(np.column_stack((problem, paths.tokens)), axis=0, return_index=True)[1]] = False
    order = np.lexsort((-paths.logprob, copy, -verified, problem))
    return order.reshape(-1, each)[:, :keep].ravel()
