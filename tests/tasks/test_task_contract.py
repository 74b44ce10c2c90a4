"""What every task keeps to: distinct problems of two sides, prompts, rules and a verifier that fit
together, and refused controls.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import (
    FAMILIES,
    Arm,
    CountdownConfig,
    GroupConfig,
    GroupFormat,
    MultiplyConfig,
    TaskConfig,
    TtcConfig,
)
from harness.errors import ConfigError
from harness.tasks import open_task
from harness.tasks.task import NONE, Task, held_out_side
from tests.tasks import qa_small

FAMILY: dict[str, Callable[[Path], Task]] = {
    "stride": lambda _: open_task(GroupConfig()),
    "budget": lambda _: open_task(GroupConfig(format=GroupFormat.budget)),
    "filler": lambda _: open_task(GroupConfig(arm=Arm.filler)),
    "direct": lambda _: open_task(GroupConfig(arm=Arm.direct)),
    "countdown": lambda _: open_task(CountdownConfig()),
    "multiply": lambda _: open_task(MultiplyConfig(digits=3)),
    "qa": qa_small.task,
}


def test_every_task_is_held_to_the_contract(tmp_path: Path) -> None:
    names = {name for name, cls in FAMILIES["corpus"].items() if issubclass(cls, TaskConfig)}
    assert {make(tmp_path).name for make in FAMILY.values()} == names
    with pytest.raises(TypeError, match="no task for TaskConfig"):
        open_task(TaskConfig())


@pytest.fixture(params=FAMILY)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    return FAMILY[request.param](tmp_path)


def is_trained_on(task: Task) -> bool:
    return task.context > 0


def test_problems_are_distinct_and_of_two_sides(task: Task) -> None:
    problems = task.problems(40, 3)
    assert 0 < len(problems) <= 40
    assert len(set(problems.ids.tolist())) == len(problems)
    again = task.problems(40, 3)
    assert np.array_equal(again.ids, problems.ids), "the same arguments give the same problems"
    few = task.problems(10, 3)
    assert np.array_equal(few.ids, problems.ids[: len(few)]), "more problems begin with the fewer"
    assert (problems.cluster.dtype, problems.size.dtype) == (np.int64, np.int64)
    if is_trained_on(task):
        assert held_out_side(problems.ids).all()
        assert not held_out_side(task.problems(40, 3, held_out=False).ids).any()


def test_rows_are_made_of_tokens_and_scored_targets(task: Task) -> None:
    if not is_trained_on(task):
        return
    for held_out in (False, True):
        tokens, mask, positions = task.rows(np.random.default_rng(0), 20, held_out=held_out)
        again = task.rows(np.random.default_rng(0), 20, held_out=held_out)
        assert np.array_equal(tokens, again[0])
        assert (tokens.shape, tokens.dtype) == ((20, task.context + 1), np.int64)
        assert (mask.shape, mask.dtype) == ((20, task.context), np.float32)
        assert 0 <= tokens.min() <= tokens.max() < task.vocab
        if positions is not None:
            assert (positions.shape, positions.dtype) == ((20, task.context), np.int64)


def controls(task: Task) -> list:
    return task.controls(TtcConfig())


def test_prompts_are_tokens_with_their_positions(task: Task) -> None:
    problems = task.problems(20, 0)
    for control in controls(task):
        tokens, positions = task.prompts(problems, control)
        assert len(tokens) == len(positions) == len(problems)
        for t, p in zip(tokens, positions, strict=True):
            assert (t.dtype, p.dtype, t.shape) == (np.int64, np.int64, p.shape)
            assert 0 <= t.min() <= t.max() < task.vocab


def test_the_reference_trace_is_graded_right_and_a_changed_one_is_not(task: Task) -> None:
    problems = task.problems(20, 0)
    for control in controls(task):
        trace = task.trace(problems, control)
        if trace is None:  # a task with many right answers, or none in tokens
            continue
        assert trace.tokens.shape == trace.scored.shape
        assert trace.tokens.shape[1] <= task.max_new(control)
        ends = np.argmax(trace.tokens == task.eos, axis=1) + 1
        assert (trace.tokens[np.arange(len(ends)), ends - 1] == task.eos).all()
        grades = task.grade(problems, control, trace.tokens, ends)
        assert grades.correct.all()
        assert grades.trace_ok.all()
        assert not grades.truncated.any()
        assert (grades.answer != NONE).all()
        # the right trace of another problem
        other = problems.take(np.roll(np.arange(len(problems)), 1))
        wrong = task.grade(other, control, trace.tokens, ends)
        assert not (wrong.trace_ok & (other.ids != problems.ids)).all()
        cut = task.grade(problems, control, trace.tokens, np.ones_like(ends))
        assert cut.truncated.sum() >= (ends > 1).sum()


def test_rules_and_positions_follow_whatever_was_generated(task: Task) -> None:
    problems = task.problems(6, 0)
    rng = np.random.default_rng(0)
    for control in controls(task):
        generated = rng.integers(0, min(task.vocab, 8), (len(problems), task.max_new(control)))
        for t in range(min(task.max_new(control), 12)):
            rule = task.rule(problems, control, generated[:, :t])
            assert rule.forced.shape == (len(problems),)
            assert ((rule.forced == NONE) | ((rule.forced >= 0) & (rule.forced < task.vocab))).all()
            if rule.banned is not None:
                assert (rule.banned.shape, rule.banned.dtype) == ((len(problems), task.vocab), np.bool_)
                assert not rule.banned.all(1).any(), "something can always be generated"
            if t:
                assert task.position(problems, control, generated[:, :t]).shape == (len(problems),)
        grades = task.grade(problems, control, generated, np.full(len(problems), generated.shape[1]))
        for value in (grades.answer, grades.correct, grades.verified, grades.trace_ok, grades.truncated):
            assert value.shape == (len(problems),)
        assert not (grades.trace_ok & ~grades.correct).any(), "a right trace has a right answer"


def test_a_control_that_the_task_lacks_is_refused(task: Task) -> None:
    assert len(controls(task)) == len(set(controls(task))) > 0
    with pytest.raises(ConfigError, match=r"ttc\.(strides|max_states|min_states)"):
        task.controls(TtcConfig(strides=[7], max_states=[10**6], min_states=10**7))


def test_the_record_says_what_was_asked(task: Task, tmp_path: Path) -> None:
    text = json.dumps(task.info, allow_nan=False)
    assert str(tmp_path) not in text
    assert {"chance", "hash"} <= set(task.info)
    assert 0 <= task.chance < 1
    assert task.floor_nat is not None or task.floor_reason
