"""One unit of an evaluation: draw its problems by its strategy, and let the task grade every row."""

from __future__ import annotations

import numpy as np

from harness.config.schema import TtcConfig
from harness.models.flops import prefill_flop
from harness.tasks.task import Control, Problems, Task
from harness.ttc.decode import Decoder, Drawn, draw, likelihood
from harness.ttc.step_search import step_search
from harness.ttc.work_units import Arrays, Unit


def unit(
    decoder: Decoder,
    task: Task,
    problems: Problems,
    control: Control,
    what: Unit,
    ttc: TtcConfig,
    temperature: float,
    seed: int,
) -> tuple[Arrays, int, float]:
    """Arrays to store, (problems, samples) each; tokens and FLOP that were really executed."""
    if what.kind == "smooth":
        return _likelihood(decoder, task, problems, control)
    if what.kind == "search":
        width, keep = ttc.beam_width, ttc.beam_keep
        drawn = step_search(
            decoder,
            task,
            problems,
            control,
            width=width,
            keep=keep,
            temperature=temperature,
            seed=seed,
            batch_rows=ttc.batch_rows,
        )
    else:
        drawn = draw(
            decoder,
            task,
            problems,
            control,
            samples=what.count,
            temperature=temperature if what.kind == "sample" else 0.0,
            seed=seed,
            batch_rows=ttc.batch_rows,
        )
    return (
        _graded(task, problems, control, drawn, what.count),
        drawn.prefill_tokens + drawn.row_passes,
        drawn.executed_flop,
    )


def _likelihood(decoder: Decoder, task: Task, problems: Problems, control: Control) -> tuple[Arrays, int, float]:
    lnp, brier = likelihood(decoder, task, problems, control)
    prompts, _ = task.prompts(problems, control)
    lengths = [len(p) + lnp.shape[1] - 1 for p in prompts]
    shape, scored = decoder.shape, lnp.shape[1]  # the head runs on the positions before scored tokens only
    flop = float(
        sum(prefill_flop(shape, n, causal=False) - 2 * shape.vocab * shape.width * (n - scored) for n in lengths)
    )
    return {"lnp": lnp, "brier": brier}, sum(lengths), flop


def _graded(task: Task, problems: Problems, control: Control, drawn: Drawn, samples: int) -> Arrays:
    """The verifier's word on every row; costs of a search are per problem."""
    grades = task.grade(problems.take(drawn.problem), control, drawn.tokens, drawn.lengths)
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
