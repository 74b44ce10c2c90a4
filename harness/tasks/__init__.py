"""Tasks: corpora to train on that are also tests. `open_task` is the one way to get one."""

from __future__ import annotations

from harness.schema import CountdownConfig, GroupConfig, MultiplyConfig, QaConfig, TaskConfig
from harness.tasks.task import Task


def open_task(config: TaskConfig) -> Task:
    """The task of a config. ConfigError for settings that contradict each other."""
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
            from harness.tasks.qa import QaTask  # pyright: ignore[reportMissingImports]

            return QaTask(config)
        case _:
            raise TypeError(f"no task for {type(config).__name__}")
