"""A task as a corpus: batches that are pure, a validation set of held-out problems, and a run
through `harness run`'s own path.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from harness import records
from harness.config import checks, ladder
from harness.config.schema import (
    Arm,
    CountdownConfig,
    GroupConfig,
    GroupFormat,
    MultiplyConfig,
    QaConfig,
    RunConfig,
    TaskConfig,
)
from harness.data.corpora import TaskCorpus, open_corpus, save_tokenizer, sizes
from harness.errors import ConfigError
from harness.tasks.task import held_out_side

TASKS: dict[str, TaskConfig] = {
    "stride": GroupConfig(val_tokens=5_400),
    "budget": GroupConfig(format=GroupFormat.budget, val_tokens=5_600),
    "filler": GroupConfig(arm=Arm.filler, val_tokens=5_400),
    "countdown": CountdownConfig(val_tokens=3_000),
    "multiply": MultiplyConfig(digits=3, val_tokens=3_700),
}


def test_validation_is_of_the_held_out_side() -> None:
    corpus = TaskCorpus(TASKS["stride"])
    (batch,) = corpus.val_batches(10_000)
    assert held_out_side(corpus.task._ids(batch.tokens[:, 2:14] - 60)).all()  # type: ignore[attr-defined]
    assert not held_out_side(corpus.task._ids(corpus.train_batch(0, 5, 999).tokens[:, 2:14] - 60)).any()  # type: ignore[attr-defined]


def test_info(tmp_path: Path) -> None:
    group, countdown = TaskCorpus(GroupConfig()), TaskCorpus(CountdownConfig())
    assert (group.info["floor_nat"], group.val_oracle_nat()) == (0.0, 0.0)
    assert countdown.info["floor_nat"] is countdown.val_oracle_nat() is None
    assert "several continuations are right" in countdown.info["floor_reason"]
    assert countdown.unique_tokens(10**9) == 4_165 * 15
    assert group.unique_tokens(1_000_000) == 1_000_000
    ids = {TaskCorpus(c).info["corpus_id"] for c in TASKS.values()}
    assert len(ids) == len(TASKS)
    assert group.info["corpus_id"] != TaskCorpus(GroupConfig(operators=[16, 30, 36])).info["corpus_id"]
    save_tokenizer(countdown, tmp_path)
    assert (tmp_path / "tokenizer.json").exists()


def test_qa_is_not_trained_on() -> None:
    with pytest.raises(ConfigError, match="corpus=qa is not trained on"):
        open_corpus(QaConfig(), 0)
    with pytest.raises(ConfigError, match="corpus=qa is not trained on"):
        sizes(QaConfig())


def problems(**corpus: object) -> list[str]:
    kind = corpus.pop("kind", GroupConfig)
    run = RunConfig(corpus=kind(**corpus))  # type: ignore[operator]
    run.budget.tokens = 1_000_000
    return checks.check_run(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 64}, "corpus.context=64 cannot be set: the task's format decides it. Leave it out."),
        ({"val_tokens": 0}, "corpus.val_tokens=0 must be at least 1."),
        ({"group": "S6"}, "corpus.group='S6' is unknown. Use S3, S4, S5, A4, A5, or Z2 to Z120."),
        ({"group": "Z121"}, "corpus.group='Z121' is unknown. Use S3, S4, S5, A4, A5, or Z2 to Z120."),
        (
            {"group": "S3"},
            "corpus.operators has [16, 30, 36, 48]: S3 has the elements 0 to 5. [] takes them all.",
        ),
        (
            {"operators": [3, 3]},
            "corpus.operators=[3, 3] must be two or more different elements, or [] for all.",
        ),
        ({"steps": 1, "strides": [1]}, "corpus.steps=1 must lie between 2 and 256."),
        ({"steps": 8}, "corpus.strides has [12]: a stride lies between 1 and corpus.steps=8."),
        ({"strides": []}, "corpus.strides=[] must be one or more different strides."),
        ({"kind": CountdownConfig, "numbers": 7}, "corpus.numbers=7 must lie between 2 and 6."),
        ({"kind": CountdownConfig, "ceiling": 1000}, "corpus.ceiling=1000 must lie between 1 and 999."),
        (
            {"kind": CountdownConfig, "low": 12},
            "corpus.low=12, corpus.high=12: needed is 0 <= low < high <= corpus.ceiling=99.",
        ),
        (
            {"kind": CountdownConfig, "arm": Arm.filler},
            "corpus.arm=filler does not exist for countdown: every token of its answer is the answer. Use cot or direct.",
        ),
        (
            {"kind": MultiplyConfig, "digits": 10},
            "corpus.digits=10 must lie between 2 and 9: products are 64-bit integers.",
        ),
    ],
)
def test_contradictions(settings: dict, message: str) -> None:
    assert problems(**settings) == [message]


def test_settings_that_fit_are_accepted() -> None:
    assert problems() == problems(kind=CountdownConfig) == problems(kind=MultiplyConfig) == []
    assert problems(group="S3", operators=[], format=GroupFormat.budget, steps=8) == []


def test_a_short_run(tmp_path: Path) -> None:
    """Through train.run: shape and vocabulary are the task's, and the loss falls below that of the
    format alone.
    """
    config = GroupConfig(group="S3", operators=[], steps=3, strides=[1, 3], val_tokens=900)
    vocab, context = sizes(config)
    assert (vocab, context) == (18, 9)

    straight = tiny.config(tmp_path, steps=51, corpus=config, optim__batch_tokens=72, schedule__warmup_tokens=72 * 5)
    assert ladder.resolve(straight, vocab, context).hyper.sequences == 8
    state = tiny.train(straight)
    assert (state.state, state.reason) == ("done", None)
    record = records.load_record(tiny.run_dir(straight))
    assert record.corpus["kind"] == "group"
    assert record.corpus["task"]["operators"] == [0, 1, 2, 3, 4, 5]
    assert record.points[0].loss_nat < np.log(18) - 0.3
