"""Tasks: corpora to train on that are also tests. `open_task` is the one way to get one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config.schema import CountdownConfig, GroupConfig, MultiplyConfig, QaConfig, TaskConfig
from harness.tasks.task import Task

if TYPE_CHECKING:
    from harness.tasks.qa import Codec


def open_task(config: TaskConfig, codec: Codec | None = None, max_new_tokens: int = 512) -> Task:
    """The task of a config.

    ConfigError for settings that contradict each other. Text tasks need the model's tokenizer and a
    limit of tokens.
    """
    match config:
        case GroupConfig():
            from harness.tasks.group import GroupTask

            return GroupTask(config)
        case CountdownConfig():
            from harness.tasks.countdown import CountdownTask

            return CountdownTask(config)
        case MultiplyConfig():
            from harness.tasks.multiply import MultiplyTask

            return MultiplyTask(config)
        case QaConfig():
            from harness.tasks.qa import QaTask

            assert codec is not None, "a text task is opened with the tokenizer of the model that it tests"
            return QaTask(config, codec, max_new_tokens)
        case _:
            raise TypeError(f"no task for {type(config).__name__}")
