"""pam-mobile data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, UsageError
from ..reporter import Reporter
from .common import Result, verb

if TYPE_CHECKING:
    from ..data.datasets import DataSet

MEGABYTE = 1_000_000

app = typer.Typer(help="Check a data set, or pack it into a few large files.", no_args_is_help=True)
Root = Annotated[str, typer.Argument(help="A data set, ROOT or NAME:ROOT.", metavar="ROOT")]


@app.command("check")
@verb
def check(reporter: Reporter, root: Root) -> Result:
    """Say what a data set holds, and name every file whose header shows that it cannot be used."""
    from ..data.datasets import open_dataset

    data = open_dataset(root)
    _require_sound(data, reporter)
    counts = {
        "foregrounds": len(data.cutouts()),
        "backgrounds": len(data.background_files()),
        "test images": len(data.triples()),
    }
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Result(
        {"root": root, "layout": data.layout, **counts}, f"{root}: {data.layout}, {text}; all headers are sound"
    )


@app.command("pack")
@verb
def pack(
    reporter: Reporter,
    root: Root,
    out: Annotated[Path, typer.Option(help="An empty folder for the shards.")],
    megabytes: Annotated[int, typer.Option(help="Largest size of a shard.")] = 500,
) -> Result:
    """Pack a data set into tar shards, which training and evaluation read without unpacking."""
    from ..data.datasets import open_dataset
    from ..data.datasets import pack as write

    if megabytes < 1:
        raise UsageError(f"--megabytes {megabytes} holds nothing", "use 1 or more")
    data = open_dataset(root)
    _require_sound(data, reporter)
    counts = write(data, out, megabytes * MEGABYTE)
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    return Result(
        {"out": str(out), **counts}, f"packed {root} into {out}: {text}\n\nnext:\n  pam-mobile train --data {out}"
    )


def _require_sound(data: DataSet, reporter: Reporter) -> None:
    from ..data.preflight import check_dataset

    faults = check_dataset(data)
    for fault in faults:
        reporter.warn(fault.message)
    if faults:
        raise InputError(
            f"{len(faults)} files of {data.root} cannot be used, the first: {faults[0].message}", faults[0].hint
        )
