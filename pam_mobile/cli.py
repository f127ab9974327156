"""The command line. Only argument parsing lives here and in `commands/`; each verb imports what it needs when it runs."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import typer

from . import __version__
from .commands import bench, data, doctor, evaluate, export, info, predict, quickstart, train, verify
from .commands.common import answer, fail, unanswered

# typer carries its own click from 0.28 on; its public exception leads to the base class of either one.
ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="pam-mobile",
    help="Path-adaptive matting: one network for every compute budget, from training to phone artifacts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of `pam-mobile`."""
    # Before torch is imported. Threads that spin for long while they wait slow everything down beside another busy process.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what no encoding knows
            stream.reconfigure(errors="backslashreplace")
    code = _run()
    sys.exit(answer("") or code)


def _run() -> int:
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except ClickException as error:
        message = error.format_message()
        if not message:  # no arguments at all: the help is printed already
            return 2
        verb = getattr(getattr(error, "ctx", None), "command_path", "pam-mobile")
        return fail(2, message, f"see `{verb} --help`", as_json)
    except (typer.Abort, KeyboardInterrupt):
        return fail(130, "interrupted", "", as_json)
    except OSError as error:  # the help was too much for stdout
        return unanswered(error)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
