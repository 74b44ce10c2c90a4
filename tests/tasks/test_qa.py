"""Text tasks: prompts to the letter, problems by hash, forced budgets, ends, extraction; against a
model whose text is known.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.schema import Arm, CountdownConfig, QaConfig, TtcConfig
from harness.errors import ConfigError, CorpusError
from harness.tasks.countdown import CountdownTask
from harness.tasks.qa import ANSWER_TOKENS, check_controls
from harness.tasks.qa_data import open_records, read_jsonl
from harness.tasks.qa_text import answer_id
from harness.tasks.task import NONE, Control
from tests.tasks import qa_small

FREE = Control()
MARK = "\n####"


# --- prompts -------------------------------------------------------------------------------------
def prompt_text(task: Any, control: Control = FREE) -> str:
    (tokens,), (positions,) = task.prompts(task.problems(1), control)
    assert positions.tolist() == list(range(len(tokens)))
    return task.codec.decode(tokens.tolist())


COT = """\
Question: A shelf holds 4 jars. 3 boxes of 35 jars are put on it. How many jars does it hold?
Answer: The boxes hold 3 * 35 = <<3*35=105>>105 jars.
With those before it holds 4 + 105 = <<4+105=109>>109 jars.
#### 109

Question: A shelf holds 3 jars. 4 boxes of 221 jars are put on it. How many jars does it hold?
Answer:"""


def test_the_prompts_of_all_arms_to_the_letter(tmp_path: Path) -> None:
    shots = qa_small.write(tmp_path / "shots.jsonl", range(1, 2))
    test = qa_small.write(tmp_path / "one.jsonl", range(7, 8))
    from harness.models.pretrained import HfCodec
    from harness.tasks.qa import QaTask

    found = {}
    for arm in Arm:
        config = QaConfig(arm=arm, test=str(test), shots_from=str(shots), shots=1)
        found[arm] = prompt_text(QaTask(config, HfCodec(qa_small.tokenizer(), 264, 4096), 400))
    assert found[Arm.cot] == COT
    worked = COT[COT.index(" The boxes") : COT.index("\n#### 109")]
    assert found[Arm.direct] == COT.replace(worked, "") + MARK
    assert found[Arm.filler] == COT.replace(worked, " ." * len(worked.encode()))


def test_the_start_token_comes_first_where_the_tokenizer_writes_one(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    (tokens,), _ = task.prompts(task.problems(1), FREE)
    assert task.codec.start == []  # this tokenizer writes none by itself
    task.codec.start = [257]
    again = qa_small.task(tmp_path)
    again.codec.start = [257]
    assert again.prompts(again.problems(1), FREE)[0][0].tolist() == [257, *tokens.tolist()]


@pytest.mark.parametrize("arm", list(Arm))
def test_without_exemplars_the_chat_template_asks(tmp_path: Path, arm: Arm) -> None:
    task = qa_small.task(tmp_path, arm, shots=0, chat=True)
    question = task.records[task.problems(1).payload[0]].question
    text = prompt_text(task, Control(max_states=8))
    tell = "Solve the problem step by step. Then write" if arm is Arm.cot else "Write"
    assert text.startswith(f"<user>{tell} #### and")
    assert text.endswith(f"\n\n{question}</user><assistant>" + ("####" if arm is Arm.direct else ""))
    assert task.info["chat_template"]
    plain = prompt_text(qa_small.task(tmp_path, arm, shots=0), Control(max_states=8))
    assert plain.endswith(f"\n\nQuestion: {question}\nAnswer:" + (MARK if arm is Arm.direct else ""))


def test_what_is_built_decides_the_hash(tmp_path: Path) -> None:
    one = qa_small.task(tmp_path)
    assert one.info["prompt_sha256"] == hashlib.sha256(one.prompt("{question}").encode()).hexdigest()
    assert qa_small.task(tmp_path).info == one.info
    others = [qa_small.task(tmp_path, shots=3), qa_small.task(tmp_path, Arm.direct), qa_small.task(tmp_path, shots=0)]
    assert len({t.info["prompt_sha256"] for t in (one, *others)}) == 4
    assert len({t.info["hash"] for t in (one, *others, qa_small.task(tmp_path, room=99))}) == 5
    assert str(tmp_path) not in str(one.info)


def test_a_prompt_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, shots=8)
    task.codec.context = 1_500
    with pytest.raises(
        ConfigError, match=r"exceed the 1500 positions of this model\. Use fewer exemplars \(corpus\.shots=8\)"
    ):
        task.prompts(task.problems(1), FREE)


# --- problems ------------------------------------------------------------------------------------
def test_problems_go_by_hash_and_exemplars_are_not_asked(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, problems=40, shots=5)
    assert len(task.records) == 35
    few, many, other = task.problems(10), task.problems(99), task.problems(35, seed=1)
    assert many.ids[:10].tolist() == few.ids.tolist()
    assert sorted(many.ids.tolist()) == sorted(other.ids.tolist())
    assert many.ids.tolist() != other.ids.tolist()
    assert len(set(many.ids.tolist())) == len(many) == 35
    head = task.prompt("")
    assert not any(task.records[i].question in head for i in many.payload.tolist())
    assert len(task.problems(10, held_out=False)) == 0
    shuffled = (tmp_path / "test.jsonl").read_text().splitlines()[::-1]
    (tmp_path / "shuffled.jsonl").write_text("\n".join(shuffled))
    again = qa_small.task(tmp_path, shots=5, test=str(tmp_path / "shuffled.jsonl"))
    assert again.problems(10).ids.tolist() == few.ids.tolist(), "the order of the file does not matter"


def test_exemplars_go_by_their_seed(tmp_path: Path) -> None:
    from harness.models.pretrained import HfCodec
    from harness.tasks.qa import QaTask

    test = str(qa_small.write(tmp_path / "t.jsonl", range(20)))
    codec = HfCodec(qa_small.tokenizer(), 264, 4096)
    heads = {QaTask(QaConfig(test=test, shots=2, shots_seed=s), codec, 400).prompt("") for s in (0, 0, 1, 2)}
    assert len(heads) == 3


# --- decoding ------------------------------------------------------------------------------------
def gold(task: Any) -> tuple[str, str]:
    record = task.records[task.problems(1).payload[0]]
    return record.rationale, record.answer


@pytest.mark.parametrize("after", ["\n\nQuestion: and on", "\n#### 5", "\nmore", ""])
def test_a_row_ends_when_its_answer_line_has(tmp_path: Path, after: str) -> None:
    task = qa_small.task(tmp_path)
    thought, answer = gold(task)
    tokens, forced, grades = qa_small.play(task, task.problems(1), FREE, f" {thought}\n#### {answer}{after}")
    assert qa_small.written(task, tokens) == f" {thought}\n#### {answer}" + after[:1]
    assert forced == (1 if after else 0), "only the end token is forced"
    assert grades.correct.tolist() == grades.trace_ok.tolist() == [True]
    assert grades.strict is not None
    assert (grades.strict[0], grades.truncated[0], grades.verified[0]) == (True, False, 2)
    assert grades.answer[0] == answer_id(task.records[task.problems(1).payload[0]].gold)


def test_blank_lines_within_a_thought_do_not_end_it_but_another_question_does(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    _, answer = gold(task)
    tokens, _, grades = qa_small.play(task, task.problems(1), FREE, f" First,\n\nthen {answer} jars.\n\nQuestion: 77?")
    assert qa_small.written(task, tokens).endswith("\n\nQuestion:")
    assert grades.correct[0], "77 was never read"
    assert grades.strict is not None
    assert not grades.strict[0]


def test_thoughts_that_are_cut_or_wrong(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, room=30)
    _, answer = gold(task)
    tokens, _, grades = qa_small.play(task, task.problems(1), FREE, " x" * 40)
    assert tokens.shape[1] == task.max_new(FREE) == 30
    assert (grades.truncated[0], grades.answer[0], grades.correct[0]) == (True, NONE, False)
    wrong = " <<1+1=2>> <<1+1=3>>\n#### "
    _, _, grades = qa_small.play(qa_small.task(tmp_path), task.problems(1), FREE, f"{wrong}{answer}")
    assert (grades.correct[0], grades.trace_ok[0], grades.verified[0]) == (True, False, 1)
    _, _, grades = qa_small.play(qa_small.task(tmp_path), task.problems(1), FREE, f"{wrong}{answer}1")
    assert not grades.correct[0]


@pytest.mark.parametrize("budget", [0, 1, 20])
def test_a_forced_maximum_cuts_the_thought_and_asks_for_the_answer(tmp_path: Path, budget: int) -> None:
    task = qa_small.task(tmp_path)
    _, answer = gold(task)
    control = task.controls(TtcConfig(max_states=[budget]))[0]
    thought = " think of it at length"[:budget]
    tokens, forced, grades = qa_small.play(task, task.problems(1), control, f"{thought} {answer}\nmore")
    assert qa_small.written(task, tokens) == f"{thought}{MARK} {answer}\n"
    assert forced == len(MARK) + 1
    assert grades.correct[0]
    assert task.max_new(control) == budget + len(MARK) + ANSWER_TOKENS
    assert task.step_tokens > 0


def test_a_mark_within_the_budget_is_not_written_twice(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    for text in ("\n#### 12", "\n#### 123456\n"):
        tokens, _, _ = qa_small.play(task, task.problems(1), Control(max_states=9), text)
        assert qa_small.written(task, tokens) == text


def test_rows_are_cut_each_for_itself(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    rows = [task.codec.encode(t) for t in (" thinki", "#### 7\n", " #### 1")]
    problems = task.problems(3)
    rule = task.rule(problems, Control(max_states=7), np.array(rows))
    assert rule.forced.tolist() == [task.codec.encode("\n")[0], task.eos, NONE]


def test_a_forced_minimum_puts_a_word_in_the_place_of_the_end(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    _, answer = gold(task)
    (control,) = task.controls(TtcConfig(min_states=12))
    wait = task.codec.encode(" Wait")
    assert len(wait) == 1
    tokens, forced, grades = qa_small.play(task, task.problems(1), control, "\n#### 5\n")
    # Finishing the answer line goes on with the word, as does every end token below the minimum
    assert tokens[0, :13].tolist() == task.codec.encode("\n#### 5\n") + wait * 4 + [task.eos]
    assert forced == 4
    assert grades.truncated.tolist() == [False]
    tokens, _, grades = qa_small.play(task, task.problems(1), control, f"\n#### 5\n so\n#### {answer}\n#### 6\n")
    assert qa_small.written(task, tokens) == f"\n#### 5\n Wait so\n#### {answer}\n"
    assert grades.correct[0], "the answer that ended it counts, not the one that was overridden"


def test_the_engine_swaps_ends_and_counts_them_as_forced() -> None:
    import torch

    from harness.tasks.task import Rule
    from harness.ttc.decode import pick

    logits = torch.tensor([[0.0, 5.0, 0.0], [0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    rule = Rule(np.array([NONE, NONE, NONE, 1]), swap=(1, np.array([2, NONE, 2, 2])))
    tokens, forced, logprob = pick(logits, rule, 0.0, np.zeros(4, np.float32))
    assert tokens.tolist() == [2, 1, 0, 1]
    assert forced.tolist() == [True, False, False, True]
    assert ((logprob == 0) == forced).all()


@pytest.mark.parametrize("budget", [None, 5])
def test_fillers_and_the_mark_are_forced_then_the_model_answers(tmp_path: Path, budget: int | None) -> None:
    task = qa_small.task(tmp_path, Arm.filler)
    _, answer = gold(task)
    (control,) = task.controls(TtcConfig(max_states=[] if budget is None else [budget]))
    count = task.info["filler_tokens"] if budget is None else budget
    tokens, forced, grades = qa_small.play(task, task.problems(1), control, f" {answer}\n")
    assert qa_small.written(task, tokens) == " ." * count + f"{MARK} {answer}\n"
    assert forced == count + len(MARK) + 1
    assert grades.correct[0]


def test_direct_answers_follow_the_mark_of_the_prompt(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, Arm.direct)
    _, answer = gold(task)
    tokens, _, grades = qa_small.play(task, task.problems(1), FREE, f" {answer}\n\nQuestion:")
    assert qa_small.written(task, tokens) == f" {answer}\n"
    assert grades.strict is not None
    assert (grades.correct[0], grades.strict[0]) == (True, True)
    assert task.max_new(FREE) == ANSWER_TOKENS


def test_positions_go_on_from_the_prompt(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path)
    problems = task.problems(3).take(np.array([0, 0, 2]))
    lengths = [len(t) for t in task.prompts(problems, FREE)[0]]
    assert task.position(problems, FREE, np.zeros((3, 4), np.int64)).tolist() == [n + 3 for n in lengths]


# --- controls ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arm", "ttc", "said"),
    [
        (Arm.cot, TtcConfig(strides=[2]), r"ttc\.strides=\[2\]: corpus=qa has no strides"),
        (Arm.direct, TtcConfig(max_states=[4]), r"corpus\.arm=direct has no thought to cut"),
        (Arm.direct, TtcConfig(min_states=4), r"only corpus\.arm=cot decides when to end"),
        (Arm.filler, TtcConfig(min_states=4), r"only corpus\.arm=cot decides when to end"),
        (Arm.cot, TtcConfig(max_states=[4], min_states=8), r"ttc\.min_states=8 is above one of ttc\.max_states=\[4\]"),
        (Arm.cot, TtcConfig(min_states=400), r"leaves no room to answer within ttc\.max_new_tokens=400"),
    ],
)
def test_controls_that_an_arm_does_not_have(arm: Arm, ttc: TtcConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_controls(QaConfig(arm=arm), ttc, 400)


def test_words_that_are_no_single_token_are_told(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, words=())
    assert len(task.controls(TtcConfig(max_states=[3, 5]))) == 2
    with pytest.raises(ConfigError, match=r"ttc\.min_states=3: none of .* is a single token of this tokenizer"):
        task.controls(TtcConfig(min_states=3))
    with pytest.raises(ConfigError, match=r"arm=filler with corpus\.shots=0 has no rationale"):
        qa_small.task(tmp_path, Arm.filler, shots=0).controls(TtcConfig())


# --- countdown in words --------------------------------------------------------------------------
def test_countdown_in_words_asks_the_problems_of_the_ladder(tmp_path: Path) -> None:
    task = qa_small.task(tmp_path, test="countdown", room=400)
    ladder = CountdownTask(CountdownConfig())
    asked = {(*sorted(r.numbers), int(r.gold)) for r in task.records}
    held_out = ladder.problems(ladder.distinct_rows).payload.tolist()
    assert asked == {(*sorted(p[:-1]), p[-1]) for p in held_out}
    assert task.chance == ladder.chance
    source = open_records(QaConfig(test="countdown"))
    assert len(source.test) + len(source.shots) == 4_165
    assert not asked & {(*sorted(r.numbers), int(r.gold)) for r in source.shots}
    problems = task.problems(64)
    record = task.records[problems.payload[0]]
    a, b, c = record.numbers
    assert record.question == (
        f"Use each of the numbers {a}, {b} and {c} exactly once, with +, - and * and parentheses, to make {record.gold}."
    )
    for i in range(64):
        record = task.records[problems.payload[i]]
        text = f" {record.rationale}\n#### {record.answer}\n"
        _, _, grades = qa_small.play(task, problems.take(np.array([i])), FREE, text)
        assert grades.trace_ok[0]
        assert grades.verified[0] == 2
        _, _, grades = qa_small.play(task, problems.take(np.array([i])), FREE, f"\n#### {record.gold}\n")
        assert not grades.correct[0], "the target alone is no answer"


# --- what cannot be read -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"bad\.jsonl has no rows"),
        ("{", r"bad\.jsonl, line 1 is no JSON"),
        ('{"question": "q"}', r"bad\.jsonl, line 1 has no texts `question` and `answer` \(it has question\)"),
        ('\n{"question": "q", "answer": "#### blue"}', r"bad\.jsonl, line 2 has no number as its answer: 'blue'"),
        ('{"question": " ", "answer": "3"}', r"bad\.jsonl, line 1 has no question"),
        ('{"question": "q", "answer": "#### 2 1/2"}', r"line 1 has more than one number after ####: '2 1/2'"),
        ('{"question": "q", "answer": "#### 1e3"}', r"more than one number after ####: '1e3'"),
        ('{"question": "q", "answer": "#### 3 or 4"}', r"more than one number after ####: '3 or 4'"),
        ("[1]", r"it has list"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(CorpusError, match=said):
        read_jsonl(path)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"absent\.jsonl cannot be read: No such file"):
        read_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(CorpusError, match=r"corpus\.shots=9: there are only 3 records"):
        qa_small.task(tmp_path, shots=9, problems=3)
    test = str(qa_small.write(tmp_path / "t.jsonl", range(3)))
    with pytest.raises(ConfigError, match=r"corpus\.shots_from=train is no \.jsonl file"):
        open_records(QaConfig(test=test, shots_from="train"))
    with pytest.raises(ConfigError, match=r"no meaning with corpus\.test=countdown"):
        open_records(QaConfig(test="countdown", shots_from=test))
    (tmp_path / "bare.jsonl").write_text('{"question": "a", "answer": "3"}\n{"question": "b", "answer": "1,000"}')
    with pytest.raises(CorpusError, match=r"none of the exemplars has worked steps"):
        qa_small.task(tmp_path, shots=1, test=str(tmp_path / "bare.jsonl"))
    assert {int(r.gold) for r in read_jsonl(tmp_path / "bare.jsonl")} == {3, 1000}


def test_the_hub_by_name_config_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked.append((name, config, split, revision))
        return [qa_small.row(i) for i in (range(12) if split == "test" else range(12, 30))]

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_records(QaConfig(revision="abc", shots=2))
    assert asked == [("openai/gsm8k", "main", "test", "abc"), ("openai/gsm8k", "main", "train", "abc")]
    assert {k: source.info[k] for k in ("test", "hub_config", "revision", "shots_from")} == {
        "test": "openai/gsm8k",
        "hub_config": "main",
        "revision": "abc",
        "shots_from": "train",
    }
    local = open_records(QaConfig(test=str(qa_small.write(tmp_path / "same.jsonl", range(12))), shots=0))
    assert local.info["test_sha256"] == source.info["test_sha256"], "a hash of the rows, wherever they come from"


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*arguments: object, **more: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        CorpusError,
        match=r"Couldn't reach the Hub\. Check the name and the network; without a network give a local file",
    ):
        open_records(QaConfig())


def test_of_two_rows_with_one_question_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q ", "answer": "#### 2"}\n')
    assert [int(r.gold) for r in read_jsonl(path)] == [1]


def test_a_token_that_runs_past_the_answer_is_not_read(tmp_path: Path) -> None:
    """As tokens of real tokenizers do, which hold a new line and what follows."""
    task = qa_small.task(tmp_path, words=("\n#### 9",))
    tokens = np.array(task.codec.encode("\n#### 7") + task.codec.encode("\n#### 9") + [task.eos])
    assert task.text(FREE, tokens) == "\n#### 7\n"


def test_real_gold_solutions_are_graded_right() -> None:
    """The data set's own test solutions as if a model had written them: every one read strictly,
    right, and finished.
    """
    from harness.models.pretrained import HfCodec
    from harness.tasks.qa import QaTask
    from tests.tasks.test_qa_text import REAL

    if not (REAL / "test.jsonl").exists():
        pytest.skip("no ../shared/corpora/gsm8k here: the real rows are not part of the project")
    config = QaConfig(test=str(REAL / "test.jsonl"), shots_from=str(REAL / "train.jsonl"))
    task = QaTask(config, HfCodec(qa_small.tokenizer(), 264, 1 << 20), 512)
    assert (len(task.problems(256)), len(task.problems(9_999))) == (256, 1_319)
    assert task.prompt("Q").count("\n\nQuestion: ") == config.shots == 8
    problems = task.problems(9_999)
    texts = [task.records[i] for i in problems.payload.tolist()]
    rows = [[*task.codec.encode(f" {r.rationale}\n#### {r.answer}\n"), task.eos] for r in texts]
    lengths = np.array([len(r) for r in rows])
    generated = np.full((len(rows), lengths.max()), task.pad)
    for i, r in enumerate(rows):
        generated[i, : len(r)] = r
    grades = task.grade(problems, FREE, generated, lengths)
    assert grades.correct.all()
    assert grades.strict is not None
    assert grades.strict.all()
    assert not grades.truncated.any()
    assert len(set(grades.answer.tolist())) == len({r.gold for r in texts})
