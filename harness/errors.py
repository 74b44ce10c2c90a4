"""Exceptions that reach the user.

Every message names the thing, its value, why it is a problem and what to do. `cli.main` prints the
message alone and exits with `exit_code`; anything that is not a `HarnessError` is a bug of ours and
keeps its traceback.
"""

from __future__ import annotations


class HarnessError(Exception):
    """Base of all errors that a user can cause and mend. Exit code 2."""

    exit_code = 2


class ConfigError(HarnessError):
    """One or more problems of a configuration, all of them at once."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class CorpusError(HarnessError):
    """A corpus that cannot be found, read, tokenised or that is too small for the budget."""


class RecordError(HarnessError):
    """A file of a run (record, state, steps, spend) that is missing, torn, or of a newer schema."""


class FitError(HarnessError):
    """A fit that would not be trustworthy and is refused, with the reason."""


class DeviceError(HarnessError):
    """A device, sensor or disk that cannot do what the settings need."""


class BusyError(HarnessError):
    """Another process holds the lock of this run."""
