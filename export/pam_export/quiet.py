"""Silence for noisy tools: their prints, C++ logs, progress bars and warnings never reach the user, unless they fail."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO, TextIO

from pam_mobile.errors import PamError

TAIL_LINES = 12
STDOUT, STDERR = 1, 2


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Send all that is written to stdout and stderr inside, by Python or C++, to a temporary file, and ignore warnings.

    what: the work that is done, for the message. Raises PamError with the end of that file as hint when the block fails;
    PamErrors pass unchanged. Report progress outside: a message from inside is lost.
    """
    with tempfile.TemporaryFile("w+b") as log:
        try:
            with _redirected(log), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except PamError:
            raise
        except Exception as error:
            raise PamError(f"{what} failed: {one_line(error)}", _tail(log)) from error


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def last_lines(text: str) -> str:
    """The end of a tool's output, for the hint of an error."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "last output of the tool:\n" + "\n".join(lines[-TAIL_LINES:]) if lines else ""


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return last_lines(log.read().decode(errors="replace"))


@contextmanager
def _redirected(log: IO[bytes]) -> Iterator[None]:
    """File descriptors 1 and 2 into `log`; sys.stdout and sys.stderr as well where they are not those (pytest, notebooks)."""
    with ExitStack() as stack:
        for number, stream in ((STDOUT, sys.stdout), (STDERR, sys.stderr)):
            stream.flush()
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(log.fileno(), number)
            if not _is(stream, number):
                # A stream that outlives the block: a logger made inside may hold on to it.
                replacement = open(number, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
                redirect = redirect_stdout if number == STDOUT else redirect_stderr
                stack.enter_context(redirect(replacement))
            stack.callback(lambda: (sys.stdout.flush(), sys.stderr.flush()))
        yield


def _is(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False
