"""Search by steps: verified prefixes win, width costs passes only where a step is several
tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.models.flops import sample_flop
from harness.tasks.task import Control
from harness.ttc.decode import Drawn, Request, Sampling
from harness.ttc.step_search import step_search
from tests.ttc.stub import END, SHAPE, CopyTask
from tests.ttc.test_decode import FREE, decoders, model_of, sampled


def searched(task: CopyTask, kind: str = "own", control: Control = FREE, count: int = 8, **settings) -> Drawn:
    settings = {"width": 200, "keep": 1, "temperature": 1.0, "seed": 1, "batch_rows": 10_000} | settings
    width, keep = settings.pop("width"), settings.pop("keep")
    request = Request(decoders(model_of())[kind], task, task.problems(count), control)
    return step_search(request, width, keep, Sampling(**settings))


def verified(task: CopyTask, drawn: Drawn) -> np.ndarray:
    return task.grade(task.problems(len(drawn.problem)), FREE, drawn.tokens, drawn.lengths).verified


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("sizes", [(5,), (2, 5, 3)], ids=["one length", "unequal"])
def test_only_verified_prefixes_are_kept_where_there_are_any(keep: int, sizes: tuple[int, ...]) -> None:
    """An untrained model copies by luck alone.

    With enough proposals every step is among them, so the search never loses one.
    """
    task = CopyTask(sizes=sizes)
    drawn = searched(task, keep=keep, temperature=5.0)
    assert (verified(task, drawn) == task.problems(8).size).all()
    assert verified(task, searched(task, width=1, temperature=5.0)).max() < max(sizes)


def test_width_one_is_one_sample() -> None:
    task = CopyTask(room=10)
    drawn, plain = searched(task, width=1), sampled(decoders(model_of())["own"], task, count=8, samples=1)
    for name in ("tokens", "lengths", "forced", "decode_flop", "prefill_flop", "prefill_tokens", "passes"):
        assert np.array_equal(getattr(drawn, name), getattr(plain, name)), name
    np.testing.assert_allclose(drawn.logprob, plain.logprob, atol=1e-5)


def test_proposals_from_the_same_logits_cost_no_pass() -> None:
    drawn = searched(CopyTask(), keep=1)
    assert drawn.decode_flop == sum(sample_flop(SHAPE, 7, int(t)) for t in drawn.lengths)
    assert drawn.row_passes == 8 * drawn.passes


def test_longer_steps_cost_passes_for_every_proposal() -> None:
    """Six digits in steps of two: the first token of a step is free, the second is fed for every
    proposal, the kept ones go on.
    """
    task, control = CopyTask(sizes=(6,), step_tokens=2, room=6), Control(min_states=6)
    drawn = searched(task, control=control, width=5)
    assert drawn.passes == 5
    assert drawn.row_passes == 3 * 8 * 5 + 2 * 8


@pytest.mark.parametrize("step_tokens", [1, 2])
def test_transformers_finds_the_same(step_tokens: int) -> None:
    task = CopyTask(sizes=(2, 5, 3), step_tokens=step_tokens)
    own, theirs = (searched(task, kind, width=6, keep=2) for kind in ("own", "transformers"))
    for f in dataclasses.fields(Drawn):
        np.testing.assert_allclose(getattr(own, f.name), getattr(theirs, f.name), atol=1e-4, rtol=1e-6, err_msg=f.name)


def test_budget_is_forced_within_the_search() -> None:
    drawn = searched(CopyTask(), control=Control(max_states=2), width=4)
    assert (drawn.lengths <= 3).all()
    assert (drawn.tokens[np.arange(8), drawn.lengths - 1] == END).all()
    assert drawn.forced.any()
