"""Search by steps against the step verifier: the strategy that needs the model for more than
samples.

What only picks among samples is in `ttc/strategies.py` and `laws/estimators.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from harness.ttc.decode import Drawn, Lockstep, Request, Sampling, batches, pick, uniforms


def step_search(request: Request, width: int, keep: int, sampling: Sampling) -> Drawn:
    """Beam search by steps of thought: each kept path proposes `width` steps, the `keep` best of a
    problem's proposals go on.

    Better is, in this order: more verified steps, not a copy of a better path, larger ln p. The
    search starts with `keep` copies of the prompt. The first tokens of a path's proposals are drawn
    from the same logits, so where a step is one token width costs no pass; where it is more, the
    further tokens are decoded for every proposal, and those passes are booked as useful. Returns
    one row per problem, its best path; the counts are those of the whole search.
    """
    decoder, task, out = request.decoder, request.task, Drawn.empty(request, 1)
    (count, room), step = out.tokens.shape, task.step_tokens
    each = keep * width
    chances = uniforms(sampling.seed, count * each, room).reshape(count, each, room)
    for prompts in batches(request, max(1, sampling.batch_rows // each)):
        logits, prefix = decoder.prefill(prompts.tokens, prompts.positions, prompts.pads)
        out.book_prefill(decoder.shape, prompts.lengths)
        batch = Lockstep(request, prompts, keep, logits, prefix, out)
        paths = _Paths.start(len(batch.of), room, task.pad)
        chance = chances[prompts.problems].reshape(-1, room)
        for start in range(0, room, step):
            stop = min(start + step, room)
            paths = _propose(batch, paths, width, sampling.temperature, chance, (start, stop))
            best = _best(request.take(prompts.problems.repeat(each)), paths, each, keep)
            paths = paths.take(best)
            if stop == room or paths.done.all():
                break
            # Where a step is one token the proposals have no cache of their own yet: they go on
            # from their path's
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
    batch: Lockstep, paths: _Paths, width: int, temperature: float, chances: np.ndarray, step: tuple[int, int]
) -> _Paths:
    """`width` continuations of each path by the tokens of one step (start, stop), fed but for the
    last token.
    """
    start, stop = step
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


def _best(request: Request, paths: _Paths, each: int, keep: int) -> np.ndarray:
    """The `keep` best of every `each` neighbouring paths, ascending by problem, the best first."""
    problem = np.arange(len(paths.done)) // each
    verified = request.task.grade(request.problems, request.control, paths.tokens, paths.lengths).verified
    copy = np.ones(len(problem), dtype=bool)
    copy[np.unique(np.column_stack((problem, paths.tokens)), axis=0, return_index=True)[1]] = False
    order = np.lexsort((-paths.logprob, copy, -verified, problem))
    return order.reshape(-1, each)[:, :keep].ravel()
