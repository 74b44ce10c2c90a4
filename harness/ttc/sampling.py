"""One unit of an evaluation: draw its problems by its strategy, and let the task grade every
row.
"""

from __future__ import annotations

import numpy as np

from harness.config.schema import TtcConfig
from harness.models.flops import prefill_flop
from harness.ttc.decode import Drawn, Request, Sampling, draw, likelihood
from harness.ttc.step_search import step_search
from harness.ttc.work_units import Arrays, Unit


def unit(request: Request, what: Unit, ttc: TtcConfig, temperature: float, seed: int) -> tuple[Arrays, int, float]:
    """Arrays to store, (problems, samples) each; tokens and FLOP that were really executed."""
    if what.kind == "smooth":
        return _likelihood(request)
    sampling = Sampling(temperature if what.kind in ("sample", "search") else 0.0, seed, ttc.batch_rows)
    if what.kind == "search":
        drawn = step_search(request, ttc.beam_width, ttc.beam_keep, sampling)
    else:
        drawn = draw(request, what.count, sampling)
    return _graded(request, drawn, what.count), drawn.prefill_tokens + drawn.row_passes, drawn.executed_flop


def _likelihood(request: Request) -> tuple[Arrays, int, float]:
    lnp, brier = likelihood(request)
    prompts, _ = request.task.prompts(request.problems, request.control)
    # The head runs on the positions before scored tokens only
    shape, scored = request.decoder.shape, lnp.shape[1]
    lengths = [len(p) + scored - 1 for p in prompts]
    flop = float(
        sum(prefill_flop(shape, n, causal=False) - 2 * shape.vocab * shape.width * (n - scored) for n in lengths)
    )
    return {"lnp": lnp, "brier": brier}, sum(lengths), flop


def _graded(request: Request, drawn: Drawn, samples: int) -> Arrays:
    """The verifier's word on every row; costs of a search are per problem."""
    problems = request.problems
    grades = request.task.grade(problems.take(drawn.problem), request.control, drawn.tokens, drawn.lengths)
    flat = {
        "answer": grades.answer,
        "correct": grades.correct,
        "verified": grades.verified,
        "trace_ok": grades.trace_ok,
        "truncated": grades.truncated,
        "length": drawn.lengths,
        "forced": drawn.forced,
        "logprob": drawn.logprob,
    }
    if grades.strict is not None:
        flat["strict"] = grades.strict
    arrays = {k: v.reshape(len(problems), samples) for k, v in flat.items()}
    costs = {
        "flop": drawn.decode_flop,
        "passes": drawn.passes,
        "row_passes": drawn.row_passes,
        "context": drawn.context_sum,
    }
    return arrays | {k: np.full((len(problems), samples), v / len(problems)) for k, v in costs.items()}
