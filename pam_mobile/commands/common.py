"""What all verbs share: --json, -q, -v, exit codes, and errors of one or two lines."""

from __future__ import annotations

import functools
import inspect
import json
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from ..errors import PamError
from ..reporter import Reporter

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Report errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Report details, and tracebacks of internal errors.")]


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
            return fail(
                1, f"internal error: {type(error).__name__}: {error}", "run again with -v for the traceback", as_json
            )
        if result.text:
            sys.stdout.write((json.dumps(result.document, indent=2) if as_json else result.text).rstrip() + "\n")
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
    sys.stderr.write(f"error: {message}\n" + (f"  {hint}\n" if hint else ""))
    if as_json:
        sys.stdout.write(json.dumps({"code": code, "message": message, "hint": hint}) + "\n")
    return code


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def split(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
