"""What all verbs share: --json, -q, -v, exit codes, and errors of one or two lines."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from ..errors import InputError, PamError, SetupError
from ..reporter import Reporter

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Report errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Report details, and tracebacks of internal errors.")]


NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "Insufficient memory")
"""What torch and OpenCV say instead of MemoryError."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Result(NamedTuple):
    """What a verb answers: a JSON document, and the same as text. No text: another process answers."""

    document: dict[str, Any]
    text: str
    code: int = 0


class Terminated(BaseException):
    """SIGTERM came."""


def verb(function: Callable[..., Result]) -> Callable[..., int]:
    """A typer command made of a function (reporter, options...) -> Result. Adds the options that every verb has."""

    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
        signal.signal(signal.SIGTERM, _terminate)
        if not verbose:
            warnings.simplefilter("ignore")
        reporter = Reporter(-1 if quiet else int(verbose))
        try:
            result = function(reporter, **options)
        except PamError as error:
            return fail(error.code, error.message, error.hint, as_json)
        except KeyboardInterrupt:
            return fail(130, "interrupted", "", as_json)
        except Terminated:
            return fail(143, "terminated", "", as_json)
        except Exception as error:
            if verbose:
                traceback.print_exc()
            return _unexpected(error, as_json)
        if result.text:
            text = json.dumps(result.document, indent=2) if as_json else result.text
            return answer(text.rstrip() + "\n") or result.code
        return result.code

    hints = get_type_hints(function, include_extras=True)
    own = [
        p.replace(annotation=hints[p.name])
        for p in inspect.signature(function).parameters.values()
        if p.name != "reporter"
    ]
    shared = {"as_json": Json, "quiet": Quiet, "verbose": Verbose}
    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, keyword, default=False, annotation=hint) for name, hint in shared.items()]
    signature = inspect.Signature([p.replace(kind=keyword) for p in own] + extra)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    del command.__wrapped__
    return command


def fail(code: int, message: str, hint: str, as_json: bool) -> int:
    """Report an error and return its exit code."""
    if sys.stderr:
        sys.stderr.write(f"error: {message}\n" + (f"  {hint}\n" if hint else ""))
    if as_json:
        answer(json.dumps({"code": code, "message": message, "hint": hint}) + "\n")
    return code


def answer(text: str) -> int:
    """Print the result; returns 0, or the exit code where stdout does not take it."""
    if sys.stdout is None:
        return 0
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        return unanswered(error)
    return 0


def unanswered(error: OSError) -> int:
    """Report that stdout does not take the answer; returns the exit code."""
    # What is left in the buffer goes there when Python closes stdout, or it would complain a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever closed it wants no message
        return 128 + signal.SIGPIPE
    return fail(
        SetupError.code, f"cannot write the answer: {error.strerror}", "free space, or send it elsewhere", False
    )


def _unexpected(error: Exception, as_json: bool) -> int:
    """Report what no check foresaw. Too little memory, or a path that the system refuses, is no fault of the program."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        hint = "take smaller images or sizes, or a machine with more"
        return fail(SetupError.code, "there is not enough memory for this", hint, as_json)
    if isinstance(error, OSError) and error.filename is not None:
        code = SetupError.code if error.errno in UNWRITABLE else InputError.code
        name = os.fsdecode(error.filename)
        return fail(code, f"{name}: {error.strerror}", "check this path, and who may read and write it", as_json)
    message = f"internal error: {type(error).__name__}: {error}"
    return fail(1, message, "run again with -v for the traceback", as_json)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def split(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
