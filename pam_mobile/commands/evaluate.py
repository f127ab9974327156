"""pam-mobile eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..reporter import Reporter
from .common import Result, split, verb


@verb
def evaluate(
    reporter: Reporter,
    data: Annotated[Path, typer.Option(help="Folder with image/, trimap/ and alpha/, files of equal names.")],
    model: Annotated[str, typer.Option(help="A run folder, a checkpoint, or `prior`.")] = "prior",
    budgets: Annotated[str, typer.Option(help="Budgets, for example 80%,100%.")] = "100%",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> Result:
    """Score a model: SAD, MSE, GRAD, CONN over the unknown pixels, and cost, per budget."""
    from ..budget import Budget
    from ..errors import UsageError
    from ..evaluate.report import evaluate as run
    from ..evaluate.report import to_json
    from ..predict.matter import Matter
    from ..tables import markdown_table

    wishes = [Budget.parse(text) for text in split(budgets)]
    if not wishes:
        raise UsageError("--budgets names no budget", "write for example --budgets 80%,100%")
    matter = Matter.load(model, device)
    rows = run(matter, data, wishes, reporter)
    header = ("budget", "SAD", "MSE", "GRAD", "CONN", "GMACs", "GMACs max", "paths", "images")
    table = markdown_table(
        header,
        [(r.budget, r.sad, r.mse, r.grad, r.conn, r.gmacs_mean, r.gmacs_max, r.paths, r.images) for r in rows],
    )
    text = f"{matter.name} on {data}: unknown pixels; SAD, GRAD, CONN /1000, MSE x1e3; means over images\n\n{table}"
    return Result(to_json(matter.name, data, rows), text)
