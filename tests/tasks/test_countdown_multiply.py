"""Countdown and multiplication: formats, verifiers against brute force, hold-outs."""

from __future__ import annotations

import numpy as np
import pytest

from harness.config.schema import Arm, CountdownConfig, MultiplyConfig, TtcConfig
from harness.errors import ConfigError
from harness.tasks import open_task
from harness.tasks.countdown import CountdownTask
from harness.tasks.multiply import MultiplyTask
from harness.tasks.task import NONE, Control, held_out_side


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def solves(numbers: list[int], target: int, text: list[int], marks: list[int], plus: int, ceiling: int) -> int:
    """Steps that hold, counted by a plain pool; one more when the pool ends as the target.

    `marks`: result tokens, [] for values.
    """
    pool = [(n, n) for n in numbers]  # (token, value)
    steps = 0
    for step in range(len(numbers) - 1):
        a, op, b, r = text[4 * step : 4 * step + 4]
        values = []
        for token in (a, b):
            match = next((p for p in pool if p[0] == token), None)
            if match is None:
                return steps
            pool.remove(match)
            values.append(match[1])
        if not plus <= op <= plus + 2:
            return steps
        result = [values[0] + values[1], values[0] - values[1], values[0] * values[1]][op - plus]
        if not 0 <= result <= ceiling or r != (marks[step] if marks else result):
            return steps
        pool.append((r, result))
        steps += 1
    return steps + (pool[0][1] == target)


COUNTDOWNS = [
    CountdownConfig(),
    CountdownConfig(arm=Arm.direct),
    CountdownConfig(numbers=4, high=20),
    CountdownConfig(arm=Arm.direct, numbers=5, high=9),
]


def test_countdown_format() -> None:
    cot, direct = CountdownTask(CountdownConfig()), CountdownTask(CountdownConfig(arm=Arm.direct))
    assert cot.vocab == direct.vocab == 110
    assert (cot.prompt_tokens, cot.written, cot.context) == (7, 9, 15)
    (a, mask, positions), (b, _, _) = cot.rows(rng(), 50), direct.rows(rng(), 50)
    assert a.shape == (50, 16)
    assert positions is None
    assert (mask == (np.arange(15) >= 6)).all()
    assert (a[:, 0] == 103).all()
    assert (a[:, 1] == 107).all()
    assert (b[:, 1] == 108).all()
    # Same draws, other format: `?` for each result and its use
    assert (a[:, 2:7] == b[:, 2:7]).all()
    assert ((a[:, 7:] == b[:, 7:]) | (b[:, 7:] == 109)).all()
    assert (b[:, [10, 14]] == 109).all()
    assert ((b[:, 7:] == 109).sum(1) == 3).all()
    assert (a[:, 14] == a[:, 5]).all(), "the last result is the target"
    assert CountdownTask(COUNTDOWNS[3]).marks.tolist() == [109, 110, 111, 112], "two open results need two names"


def test_countdown_has_4165_problems() -> None:
    task = CountdownTask(CountdownConfig())
    test, train = task.problems(10_000), task.problems(10_000, held_out=False)
    assert len(test) + len(train) == task.distinct_rows == 4_165
    assert len({*test.ids.tolist(), *train.ids.tolist()}) == 4_165
    assert abs(len(test) / 4_165 - 1 / 8) < 0.026  # five standard errors
    assert (task.problems(100).payload == test.payload[:100]).all()
    drawn = task.rows(rng(5), 100_000)[0][:, 2:6]
    ids = np.unique(task._of(drawn).ids)
    assert set(ids.tolist()) <= set(train.ids.tolist())
    assert len(ids) > 0.95 * len(train), "the drawn problems are the listed ones"


@pytest.mark.parametrize("config", COUNTDOWNS, ids=lambda c: f"{c.arm.value}{c.numbers}")
def test_countdown_verifier(config: CountdownConfig) -> None:
    task = CountdownTask(config)
    tokens = task.rows(rng(1), 3_000)[0]
    numbers = config.numbers
    problems = task._of(tokens[:, 2 : numbers + 3])
    assert not held_out_side(problems.ids).any()
    assert held_out_side(task._of(task.rows(rng(1), 300, held_out=True)[0][:, 2 : numbers + 3]).ids).all()
    assert held_out_side(task.problems(300).ids).all()
    text, lengths = tokens[:, task.prompt_tokens :], np.full(3_000, task.written)
    good = task.grade(problems, Control(), text, lengths)
    assert good.correct.all()
    assert good.trace_ok.all()
    assert (good.verified == numbers - 1).all()
    assert (good.answer != NONE).all()
    assert not good.truncated.any()
    bad, draw = text.copy(), rng(2)
    place = draw.integers(0, task.written - 1, 3_000)
    bad[np.arange(3_000), place] = draw.integers(0, task.vocab, 3_000)
    found = task.grade(problems, Control(), bad, lengths)
    marks = task.marks.tolist() if config.arm is Arm.direct else []
    wrong = 0
    for i in range(3_000):
        score = solves(
            problems.payload[i, :-1].tolist(),
            int(problems.payload[i, -1]),
            bad[i].tolist(),
            marks,
            task.plus,
            config.ceiling,
        )
        assert found.verified[i] == min(score, numbers - 1), (problems.payload[i], bad[i])
        assert found.correct[i] == (score == numbers) == found.trace_ok[i]
        wrong += score < numbers
    assert wrong > 2_500
    cut = task.grade(problems, Control(), text, lengths - 1)
    assert cut.truncated.all()
    assert not cut.correct.any()
    assert (cut.answer == NONE).all()


def test_countdown_answers_are_expressions() -> None:
    task = CountdownTask(CountdownConfig())
    problems = task._of(np.array([[2, 3, 4, 9]] * 3))
    plus, minus = task.plus, task.plus + 1
    text = np.array(
        [
            [2, plus, 3, 5, 5, plus, 4, 9, task.eos],
            [3, plus, 2, 5, 4, plus, 5, 9, task.eos],
            [3, minus, 2, 1, 4, plus, 1, 5, task.eos],
        ]
    )
    grades = task.grade(problems, Control(), text, np.full(3, 9))
    assert grades.answer[0] == grades.answer[1] != grades.answer[2]
    assert grades.correct.tolist() == [True, True, False]
    assert grades.verified.tolist() == [2, 2, 2]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"corpus.arm=filler does not exist for countdown.*Use cot or direct"):
        open_task(CountdownConfig(arm=Arm.filler))
    for task in (CountdownTask(CountdownConfig()), MultiplyTask(MultiplyConfig())):
        assert task.controls(TtcConfig()) == task.controls(TtcConfig(strides=[1])) == [Control()]
        for ttc, words in (
            (TtcConfig(strides=[2]), "strides"),
            (TtcConfig(max_states=[1]), "max_states"),
            (TtcConfig(min_states=1), "min_"),
        ):
            with pytest.raises(ConfigError, match=words):
                task.controls(ttc)


def test_multiply_format() -> None:
    two = MultiplyTask(MultiplyConfig(digits=2))
    problems = two._of(np.array([[12, 34]]))
    text = [*two.prompts(problems, Control())[0][0].tolist(), *two.trace(problems, Control()).tokens[0].tolist()]
    names = {10: "*", 11: "||", 12: "+", 13: "(", 14: ")", 15: "####", 16: "EOS"}
    assert " ".join(names.get(t, str(t)) for t in text) == "2 1 * 4 3 || 8 4 0 + 0 6 3 0 #### 8 0 4 0 EOS"
    four = MultiplyTask(MultiplyConfig(digits=4))
    assert (four.vocab, four.written) == (18, 56)  # 55 and the end
    assert MultiplyTask(MultiplyConfig(digits=4, arm=Arm.filler)).vocab == 19
    assert MultiplyTask(MultiplyConfig(digits=4, arm=Arm.filler)).written == 56
    assert MultiplyTask(MultiplyConfig(digits=4, arm=Arm.direct)).written == 10


@pytest.mark.parametrize("digits", [2, 3, 4, 9])
def test_multiply_verifier(digits: int) -> None:
    task = MultiplyTask(MultiplyConfig(digits=digits))
    tokens = task.rows(rng(1), 1_000)[0]
    places = 10 ** np.arange(digits)
    problems = task._of(np.stack([tokens[:, :digits] @ places, tokens[:, digits + 1 : 2 * digits + 1] @ places], 1))
    assert not held_out_side(problems.ids).any()
    asked = task.problems(400)
    assert len(np.unique(asked.ids)) == 400
    assert held_out_side(asked.ids).all()
    text, lengths = tokens[:, task.prompt_tokens :], np.full(1_000, task.written)
    steps = 2 * digits - 2 if digits > 1 else 1
    good = task.grade(problems, Control(), text, lengths)
    assert good.correct.all()
    assert good.trace_ok.all()
    assert (good.verified == steps).all()
    assert good.answer.tolist() == [int(a) * int(b) for a, b in problems.payload]
    # One thought token changed: the steps before it hold, it does not, and the answer still does
    draw = rng(2)
    bad, place = text.copy(), draw.integers(0, task.thought, 1_000)
    row = np.arange(1_000)
    bad[row, place] = (bad[row, place] + 1 + draw.integers(0, 9, 1_000)) % 10
    changed = bad[row, place] != text[row, place]
    found = task.grade(problems, Control(), bad, lengths)
    ends = np.cumsum([sum(part) for part in task.parts])
    assert (found.verified == np.where(changed, np.searchsorted(ends, place, side="right"), steps)).all()
    assert found.correct.all()
    assert (found.trace_ok == ~changed).all()
    # One digit of the answer changed
    bad = text.copy()
    bad[:, task.thought + 1] = (bad[:, task.thought + 1] + 1) % 10
    found = task.grade(problems, Control(), bad, lengths)
    assert not found.correct.any()
    assert (found.verified == steps).all()
    assert (found.answer != NONE).all()


@pytest.mark.parametrize("arm", [Arm.direct, Arm.filler])
def test_multiply_baselines(arm: Arm) -> None:
    task = MultiplyTask(MultiplyConfig(digits=3, arm=arm))
    tokens, mask, _ = task.rows(rng(), 100)
    problems, control = task.problems(100), Control()
    trace = task.trace(problems, control)
    assert (trace.scored.sum(1) == 6).all()
    if arm is Arm.filler:
        assert (mask.sum(1) == 6).all(), "digits of the answer alone are learned"
        assert (tokens[:, 8 : 8 + task.thought] == task.fill).all()
    generated = np.zeros((100, 0), np.int64)
    for place in range(task.max_new(control)):
        forced = task.rule(problems, control, generated).forced
        assert (
            forced == (NONE if arm is Arm.direct else np.where(trace.scored[:, place], NONE, trace.tokens[:, place]))
        ).all()
        generated = np.concatenate([generated, trace.tokens[:, place : place + 1]], 1)
    grades = task.grade(problems, control, generated, np.full(100, task.written))
    assert grades.correct.all()
    assert grades.trace_ok.all()
    assert (grades.verified == 0).all()
