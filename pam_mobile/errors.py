"""What can go wrong, and the exit code the command line gives for it. A message says what and where; a hint says what to do next."""

from __future__ import annotations


class PamError(Exception):
    """Base of the errors that a user is expected to meet; `code` is the process exit code."""

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PamError):
    """The command line or an argument makes no sense."""

    code = 2


class InputError(PamError):
    """A file or a configuration that was given cannot be used."""

    code = 3


class SetupError(PamError):
    """An optional dependency is missing, or the output cannot be written."""

    code = 4


class IntegrityError(PamError):
    """A hash or a parity gate failed: the file is not what it says it is."""

    code = 5


class BudgetError(PamError):
    """The budget is below the cheapest path."""

    code = 6


class PartialFailureError(PamError):
    """Some files of a batch failed, or training cannot go on: its loss stays non-finite, or one of its processes is lost."""

    code = 7


class InterruptedRunError(PamError):
    """A signal asked for the end, and what was done so far is saved; the code is 128 and the signal's number."""

    def __init__(self, message: str, hint: str = "", code: int = 130) -> None:
        super().__init__(message, hint)
        self.code = code
