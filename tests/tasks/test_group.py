"""The group task: its formats against the guide's examples, its verifier against products made one
by one, its hold-out.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.config.schema import Arm, GroupConfig, GroupFormat, TtcConfig
from harness.errors import ConfigError
from harness.tasks.group import GroupTask, table
from harness.tasks.task import NONE, Control, held_out_side

GROUPS = {"S3": 6, "S4": 24, "S5": 120, "A4": 12, "A5": 60, "Z6": 6}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def task(**settings: object) -> GroupTask:
    return GroupTask(GroupConfig(**settings))  # type: ignore[arg-type]


def brute_force(config: GroupConfig, operators: list[int]) -> list[int]:
    """Running products of permutations, not of a table."""
    n = int(config.group[1:])
    if config.group[0] == "Z":
        return [sum(operators[: i + 1]) % n for i in range(len(operators))]
    elements = list(itertools.permutations(range(n)))
    if config.group[0] == "A":
        even = lambda p: sum(p[i] > p[j] for i in range(n) for j in range(i + 1, n)) % 2 == 0  # noqa: E731
        elements = [p for p in elements if even(p)]
    state, out = tuple(range(n)), []
    for g in operators:
        state = tuple(state[elements[g][i]] for i in range(n))
        out.append(elements.index(state))
    return out


@pytest.mark.parametrize("name", GROUPS)
def test_tables_are_groups(name: str) -> None:
    t = table(name)
    order = GROUPS[name]
    assert t.shape == (order, order)
    for line in (t, t.T):
        assert (np.sort(line, 1) == np.arange(order)).all()
    assert (t[0] == np.arange(order)).all(), "element 0 is the identity"
    assert (t[:, 0] == np.arange(order)).all()
    a, b, c = rng().integers(0, order, (3, 500))
    assert (t[t[a, b], c] == t[a, t[b, c]]).all()


def test_pinned_generators_of_a5() -> None:
    t, orders = table("A5"), []
    for g in (16, 30, 36, 48):
        state, n = g, 1
        while state != 0:
            state, n = t[state, g], n + 1
        orders.append(n)
    assert orders == [5, 2, 5, 5]
    reached = {0}
    for _ in range(12):
        reached |= {int(t[s, g]) for s in reached for g in (16, 30, 36, 48)}
    assert len(reached) == 60


def test_unknown_groups_are_refused() -> None:
    for name in ("S6", "A3", "Z1", "Z121", "z6", ""):
        with pytest.raises(ConfigError, match="Use S3, S4, S5, A4, A5, or Z2 to Z120"):
            table(name)


def test_vocabularies() -> None:
    assert task().vocab == 128
    assert task(format=GroupFormat.budget).vocab == 125
    assert task(group="S3", operators=[], strides=[1, 2, 3, 4, 6, 12]).vocab == 22
    # FILL is one token more, and the baseline without thought has the embedding of the chain of
    # thought
    assert task(arm=Arm.filler).vocab == 129
    assert task(arm=Arm.filler, format=GroupFormat.budget).vocab == 126
    assert task(arm=Arm.direct).vocab == 128
    assert task(arm=Arm.direct, format=GroupFormat.budget).vocab == 125


def test_stride_rows() -> None:
    t = task(strides=[1, 2, 5, 12])
    tokens, mask, positions = t.rows(rng(), 200)
    assert positions is not None
    assert tokens.shape == (200, 28)
    assert mask.shape == positions.shape == (200, 27) == (200, t.context)
    seen = set()
    for row, scored, places in zip(tokens.tolist(), mask, positions, strict=True):
        assert row[0] == 120
        assert row[14] == 121
        stride = {124: 1, 125: 2, 126: 5, 127: 12}[row[1]]
        seen.add(stride)
        states = brute_force(t.config, [g - 60 for g in row[2:14]])
        ids = [min(j * stride, 12) for j in range(1, -(-12 // stride) + 1)]
        written = [states[i - 1] for i in ids] + [122]
        assert row[15 : 15 + len(written)] == written
        assert set(row[15 + len(written) :]) <= {123}
        assert np.flatnonzero(scored).tolist() == list(range(14, 14 + len(written)))
        assert places.tolist() == ([0, 0, *range(1, 13), 0, *ids] + [13] * 27)[:27]
    assert seen == {1, 2, 5, 12}


def test_budget_rows() -> None:
    t = task(format=GroupFormat.budget)
    tokens, mask, positions = t.rows(rng(), 2_000)
    assert t.context == 28
    assert positions is not None
    sizes, whole = [], 0
    for row, scored, places in zip(tokens.tolist(), mask, positions, strict=True):
        k = sum(g != 123 for g in row[1:13])
        states = brute_force(t.config, [g - 60 for g in row[1 : k + 1]])
        b = row.index(124) - 14
        assert row[0] == 120
        assert row[13] == 121
        assert 0 <= b <= k
        assert row[14 : 17 + b] == [*states[:b], 124, states[-1], 122]
        assert set(row[17 + b :]) <= {123}
        learned = [*range(13, 13 + b), *([13 + b] if b == k else []), 14 + b, 15 + b]
        assert np.flatnonzero(scored).tolist() == learned, "a forced mark is not learned"
        assert places.tolist() == ([0, *range(1, 13), 0, *range(1, b + 1), b] + [k + 1] * 28)[:28]
        sizes.append(k)
        whole += b == k
    assert abs(whole / 2_000 - 0.5) < 0.06  # five standard errors
    # A multinomial over twelve equal sizes; 45 is beyond its 0.99999 quantile
    assert ((np.bincount(sizes, minlength=13)[1:] - 2_000 / 12) ** 2 / (2_000 / 12)).sum() < 45


@pytest.mark.parametrize("form", GroupFormat)
def test_fillers_are_the_thought_in_blank(form: GroupFormat) -> None:
    blank, thought = task(arm=Arm.filler, format=form), task(format=form)
    (a, mask, places), (b, _, expected) = blank.rows(rng(4), 300), thought.rows(rng(4), 300)
    assert (places == expected).all()
    assert ((a == b) | (a == blank.fill)).all()
    assert (a == blank.fill).any()
    assert (b[a == blank.fill] < 60).all()
    assert (mask.sum(1) == 1).all(), "the answer alone is learned"
    answers = a[:, 1:][mask == 1]
    assert (answers < 60).all()


@pytest.mark.parametrize("form", GroupFormat)
@pytest.mark.parametrize("arm", Arm)
def test_training_never_sees_held_out_problems(form: GroupFormat, arm: Arm) -> None:
    t = task(format=form, arm=arm, steps=4, strides=[1, 2, 4])
    start = 1 if t.budget else 2

    def payload(tokens: np.ndarray) -> np.ndarray:
        operators = tokens[:, start : start + 4]
        return np.where(operators == t.pad, NONE, operators - 60)

    trained, tested = payload(t.rows(rng(), 4_000)[0]), payload(t.rows(rng(), 1_000, held_out=True)[0])
    assert not held_out_side(t._ids(trained)).any()
    assert held_out_side(t._ids(tested)).all()
    asked = t.problems(10_000)
    assert len(set(asked.ids.tolist())) == len(asked) == len(set(map(tuple, asked.payload.tolist())))
    assert not {*map(tuple, trained.tolist())} & {*map(tuple, asked.payload.tolist())}
    both = len(asked) + len(t.problems(10_000, held_out=False))
    assert both == t.distinct_rows == (4**4 if form is GroupFormat.stride else 4 + 16 + 64 + 256)


def test_an_eighth_is_held_out() -> None:
    t = task(steps=8)
    share = len(t.problems(10**6)) / 4**8
    assert abs(share - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 4**8) ** 0.5


def test_problems_repeat_and_are_distinct() -> None:
    t = task(format=GroupFormat.budget)
    a, b, other = t.problems(600), t.problems(600), t.problems(600, seed=1)
    assert len(a) == 600 == len(np.unique(a.ids)) == len(np.unique(a.cluster))
    assert (a.payload == b.payload).all()
    assert not (a.payload == other.payload).all()
    assert (a.size == (a.payload != NONE).sum(1)).all()


CONTROLS = {
    GroupFormat.stride: [Control(stride=s) for s in (1, 2, 3, 12)],
    GroupFormat.budget: [Control(), *(Control(max_states=m) for m in (0, 3, 12))],
}


@pytest.mark.parametrize("form", GroupFormat)
@pytest.mark.parametrize("arm", Arm)
def test_decoding_the_right_tokens_gives_the_trace(form: GroupFormat, arm: Arm) -> None:
    """A perfect model under `rule` writes `trace`, at the positions of a training row, and is
    graded right.
    """
    t = task(format=form, arm=arm)
    problems = t.problems(100)
    for control in t.controls(TtcConfig()) if arm is Arm.direct else CONTROLS[form]:
        trace = t.trace(problems, control)
        generated = np.zeros((100, 0), np.int64)
        for place in range(t.max_new(control)):
            rule = t.rule(problems, control, generated)
            due = trace.tokens[:, place] if place < trace.tokens.shape[1] else np.full(100, t.pad)
            done = (generated == t.eos).any(1)
            forced = (rule.forced != NONE) & ~done
            assert (rule.forced[forced] == due[forced]).all()
            if arm is Arm.filler:
                assert (forced | done | trace.scored[:, place]).all(), "all but the answer is forced"
            generated = np.concatenate([generated, due[:, None]], 1)
        lengths = (generated == t.eos).argmax(1) + 1
        grades = t.grade(problems, control, generated, lengths)
        assert grades.correct.all()
        assert grades.trace_ok.all()
        assert not grades.truncated.any()
        states = [brute_force(t.config, [g for g in p if g != NONE])[-1] for p in problems.payload.tolist()]
        assert grades.answer.tolist() == states


@pytest.mark.parametrize("form", GroupFormat)
def test_step_verifier_against_brute_force(form: GroupFormat) -> None:
    """One token of a right trace is changed: the verified prefix ends there, and the answer counts
    for itself.
    """
    t = task(format=form)
    control = Control(stride=2) if form is GroupFormat.stride else Control()
    problems = t.problems(300)
    good = t.trace(problems, control)
    lengths = (good.tokens == t.eos).argmax(1) + 1
    draw = rng(3)
    place = (draw.random(300) * (lengths - 1)).astype(int)
    bad = good.tokens.copy()
    row = np.arange(300)
    bad[row, place] = (bad[row, place] + 1 + draw.integers(0, 58, 300)) % 60
    changed = bad[row, place] != good.tokens[row, place]
    assert changed.mean() > 0.9
    grades = t.grade(problems, control, bad, lengths)
    for i in np.flatnonzero(changed):
        p = [g for g in problems.payload[i].tolist() if g != NONE]
        states = brute_force(t.config, p)
        due = states[1::2] if form is GroupFormat.stride else states
        text = bad[i, : lengths[i] - 1].tolist()
        prefix = 0
        while prefix < min(len(due), len(text)) and text[prefix] == due[prefix]:
            prefix += 1
        assert grades.verified[i] == prefix
        assert not grades.trace_ok[i]
        marked = form is GroupFormat.stride or (text.count(t.ans) == 1 and text.index(t.ans) == len(text) - 2)
        assert grades.answer[i] == (text[-1] if marked and text[-1] < 60 else NONE)
        assert grades.correct[i] == (grades.answer[i] == states[-1])


def test_unfinished_rows_have_no_answer() -> None:
    t = task()
    problems, control = t.problems(5), Control()
    tokens = t.trace(problems, control).tokens[:, :7]
    grades = t.grade(problems, control, tokens, np.full(5, 7))
    assert grades.truncated.all()
    assert (grades.answer == NONE).all()
    assert not grades.correct.any()
    assert (grades.verified == 7).all()


def test_forcing_and_banning() -> None:
    t = task(format=GroupFormat.budget)
    problems = t.problems(40)
    control = Control(max_states=5, min_states=3)
    ans = t.ans
    for place in range(7):
        rule = t.rule(problems, control, np.zeros((40, place), np.int64))
        assert (rule.forced == (ans if place >= 5 else NONE)).all()
        banned = np.zeros(40, bool) if rule.banned is None else rule.banned[:, ans]
        assert (banned == ((place < 3) & (place < problems.size))).all()
        if rule.banned is not None:
            assert rule.banned.sum() == banned.sum(), "only the mark is banned"
    ended = np.full((40, 6), 7)
    ended[:, 2] = ans
    assert (t.rule(problems, control, ended).forced == NONE).all(), "after the mark nothing is forced"
    assert (t.position(problems, control, ended[:, :3]) == np.minimum(2, problems.size)).all()
    assert (t.position(problems, control, ended[:, :4]) == problems.size + 1).all()


def test_controls_are_refused() -> None:
    stride, budget = task(), task(format=GroupFormat.budget)
    assert [c.stride for c in stride.controls(TtcConfig())] == [1, 2, 3, 12]
    assert budget.controls(TtcConfig()) == [Control()]
    assert [c.max_states for c in budget.controls(TtcConfig(max_states=[0, 4]))] == [0, 4]
    assert task(arm=Arm.direct).controls(TtcConfig()) == [Control(stride=12)]
    for made, ttc, words in [
        (stride, TtcConfig(strides=[4]), "never trained on"),
        (stride, TtcConfig(max_states=[3]), "no answer mark"),
        (budget, TtcConfig(strides=[2]), "writes every state"),
        (budget, TtcConfig(max_states=[13]), "outside 0 to corpus.steps=12"),
        (budget, TtcConfig(max_states=[2], min_states=3), "above one of ttc.max_states"),
        (task(arm=Arm.direct), TtcConfig(strides=[1]), "never trained on"),
        (task(arm=Arm.filler, format=GroupFormat.budget), TtcConfig(min_states=2), "only corpus.arm=cot decides"),
    ]:
        with pytest.raises(ConfigError, match=words):
            made.controls(ttc)
