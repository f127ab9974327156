"""pam-mobile train."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InterruptedRunError, UsageError
from ..files import refuse_if_locked
from ..reporter import Reporter
from .common import Result, Terminated, split, verb


@verb
def train(
    reporter: Reporter,
    out: Annotated[Path, typer.Option(help="The run folder.")],
    preset: Annotated[str | None, typer.Option(help="full, phone, phone-wide or tiny (default).")] = None,
    stages: Annotated[
        str, typer.Option(help="Stages to run: 1 whole network, 2 random paths, 3 path learning; all by default.")
    ] = "",
    prior: Annotated[
        bool | None, typer.Option("--prior/--no-prior", help="Start from the colour prior (default).")
    ] = None,
    data: Annotated[str, typer.Option(help="Data sets, ROOT or NAME:ROOT, separated by commas.")] = "",
    fg: Annotated[Path | None, typer.Option(help="Folder of foregrounds; RGBA files carry their alpha.")] = None,
    alpha: Annotated[Path | None, typer.Option(help="Folder of alphas with the foregrounds' names.")] = None,
    bg: Annotated[Path | None, typer.Option(help="Folder of backgrounds.")] = None,
    steps: Annotated[str, typer.Option(help="Steps per stage, for example 6000,4000.")] = "",
    init: Annotated[str, typer.Option(help="A model to start from instead of fresh weights.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (0).")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; the options above win.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, for example stage1.learning_rate=1e-3.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> Result:
    """Train a supernet on procedural mattes, on data sets or on folders of your own."""
    if os.environ.get("RANK", "0") == "0":
        refuse_if_locked(out)
    from .. import config as configuration
    from ..train.engine import Trainer
    from ..train.material import own_files

    base = configuration.load(config) if config else configuration.TrainConfig()
    numbers = tuple(_integers(stages, "--stages"))
    material = replace(
        base.data,
        sets=tuple(split(data)) or base.data.sets,
        foreground_folder=str(fg or base.data.foreground_folder),
        alpha_folder=str(alpha or base.data.alpha_folder),
        background_folder=str(bg or base.data.background_folder),
    )
    options = {"preset": preset, "prior": prior, "stages": numbers or None, "init": init or None, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    chosen = replace(base, **given, data=material)
    counts = _integers(steps, "--steps")
    if len(counts) > len(chosen.stages):
        raise UsageError(
            f"--steps {steps} has {len(counts)} numbers for {len(chosen.stages)} stages",
            "write one for each of --stages",
        )
    for stage, count in zip(chosen.stages, counts, strict=False):
        chosen = configuration.override(chosen, [f"stage{stage}.steps={count}"])
    chosen = configuration.override(chosen, settings or [])
    own_files(chosen.data)  # a misspelt folder leaves no run folder behind
    try:
        folder = Trainer(chosen, out, reporter).run(resume)
    except InterruptedRunError as end:
        raise InterruptedRunError(end.message, _continuation(), end.code) from end
    except (KeyboardInterrupt, Terminated) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else 143
        raise InterruptedRunError("interrupted; what was saved before is kept", _continuation(), code) from end
    if os.environ.get("RANK", "0") != "0":
        return Result({}, "")
    text = (
        f"trained: {folder}\n\nnext:\n"
        f"  pam-mobile info {out}\n"
        f"  pam-mobile predict PHOTO --trimap TRIMAP --model {out} --alpha alpha.png --cutout cutout.png\n"
        f"  pam-mobile export --model {out} --budgets 80%,90%,100% --to executorch,coreml --sizes 512 --out {out}/export"
    )
    return Result({"run": str(out), "checkpoint": str(folder)}, text)


def _continuation() -> str:
    """The command that goes on with this run."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if os.environ.get("WORLD_SIZE", "1") != processes:
        return "continue: run the same command on every machine again, with --resume at its end"
    start = ["pam-mobile"] if processes == "1" else ["torchrun", "--nproc-per-node", processes, "-m", "pam_mobile"]
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return f"continue: {shlex.join([*start, *words, '--resume'])}"


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in split(text)]
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is not a list of whole numbers", f"write for example {option} 1,2"
        ) from error
