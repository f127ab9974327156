"""pam-mobile info."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..reporter import Reporter
from .common import Result, verb

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@verb
def info(
    reporter: Reporter,
    model: Annotated[
        str | None, typer.Argument(help="A run folder, a checkpoint, or `prior`; none: list the presets.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset: its units, their costs, and the paths per budget.")
    ] = None,
    prior: Annotated[bool, typer.Option("--prior", help="With --preset: with the colour prior.")] = False,
    size: Annotated[int, typer.Option(help="Height and width at which MACs are quoted; 0: the preset's own.")] = 0,
) -> Result:
    """Show the presets, or what is known about a model: parameters, paths, costs, best path per budget."""
    if model and preset:
        raise UsageError("MODEL and --preset are both given", "give one of them")
    if prior and not preset:
        raise UsageError("--prior only works with --preset", "name a preset, or leave it out")
    if size < 0:
        raise UsageError(f"--size {size} is no size", "give pixels, or 0 for the preset's own")
    if model:
        return _model(model, size)
    return _preset(preset, prior, size) if preset else _presets(size)


def _presets(size: int) -> Result:
    from ..model.presets import PRESETS, preset
    from ..models import SHIPPED
    from ..tables import markdown_table

    rows = [_costs(preset(name, prior), size) for name in PRESETS for prior in (False, True)]
    header = ("preset", "size", "units", "paths", "GMACs smallest", "GMACs largest", "of which prior")
    cells = [(r["preset"], r["size"], r["units"], r["paths"], *(f"{r[k] / 1e9:.3f}" for k in _MACS)) for r in rows]
    names = [*SHIPPED, "prior (the colour prior without a network)"]
    text = f"{markdown_table(header, cells)}\n\nmodels that need no file: {', '.join(names)}"
    return Result({"presets": rows, "models": [*SHIPPED, "prior"]}, text)


BUDGETS = 8
"""Budgets between the smallest and the largest path that are shown for a preset."""
_MACS = ("macs_smallest", "macs_largest", "macs_prior")


def _costs(preset: Any, size: int) -> dict[str, Any]:
    from ..cost import CostTable

    side = size or preset.reference
    table = CostTable.of(preset, side, side)
    return {
        "preset": preset.label,
        "size": side,
        "units": len(table.run),
        "paths": 2 ** len(table.run),
        "macs_smallest": table.smallest,
        "macs_largest": table.largest,
        "macs_prior": table.prior,
    }


def _preset(name: str, prior: bool, size: int) -> Result:
    import torch

    from ..cost import GIGA, CostTable
    from ..model.presets import preset
    from ..model.subnet import parameter_count
    from ..model.supernet import Supernet
    from ..path import PathSpace
    from ..tables import markdown_table

    numbers = preset(name, prior)
    costs = _costs(numbers, size)
    table = CostTable.of(numbers, costs["size"], costs["size"])
    with torch.device("meta"):
        parameters = parameter_count(Supernet(numbers))
    units = [
        {**asdict(spec), "macs_run": run, "macs_bypass": bypass}
        for spec, run, bypass in zip(numbers.units, table.run, table.bypass, strict=True)
    ]
    space = PathSpace(table)
    step = (table.largest - table.smallest) // BUDGETS
    budgets = [*(table.smallest + step * i for i in range(BUDGETS)), table.largest]
    feasible = [{"macs": macs, "paths": space.count(macs)} for macs in budgets]
    ratio = round(table.largest / table.smallest, 4)
    document = {**costs, "parameters": parameters, "ratio": ratio, "unit_list": units, "feasible": feasible}
    unit_cells = [
        (
            i,
            u["stride"],
            u["channels"],
            f"{u['blocks']} {'dense' if u['dense'] else 'depthwise'}",
            f"{u['macs_run'] / GIGA:.3f}",
            f"{u['macs_bypass'] / GIGA:.3f}",
        )
        for i, u in enumerate(units)
    ]
    budget_cells = [(f"{f['macs'] / GIGA:.3f}", f"{f['macs'] / table.largest:.1%}", f["paths"]) for f in feasible]
    text = (
        f"{numbers.label}: {parameters / 1e6:.3f} M parameters, {len(units)} units, {len(space)} paths of "
        f"{table.smallest / GIGA:.3f} to {table.largest / GIGA:.3f} GMACs at {costs['size']}x{costs['size']}, "
        f"largest / smallest {ratio:.2f}\n\n"
        + markdown_table(("unit", "stride", "channels", "blocks", "GMACs run", "GMACs bypassed"), unit_cells)
        + "\n\n"
        + markdown_table(("budget, GMACs", "of the largest", "paths that fit"), budget_cells)
    )
    return Result(document, text)


def _model(model: str, size: int) -> Result:
    from ..budget import Budget
    from ..cost import GIGA, CostTable
    from ..model.subnet import extract, parameter_count
    from ..predict.matter import Matter
    from ..tables import markdown_table

    matter = Matter.load(model, "cpu")
    if not matter.checkpoint:
        plan = matter.plan(size or 512, size or 512)
        document: dict[str, Any] = {"model": "prior", "parameters": 0, "macs": plan.macs, "size": size or 512}
        return Result(document, f"prior: no parameters, {plan.macs / GIGA:.3f} GMACs at {size or 512}x{size or 512}")
    found = matter.checkpoint
    costs = _costs(found.preset, size)
    table = CostTable.of(found.preset, costs["size"], costs["size"])
    smallest = -(-table.smallest * 100 // table.largest)
    rows: list[dict[str, Any]] = []
    for percent in sorted({smallest, *range(-(-smallest // 5) * 5, 101, 5)}):
        path = found.paths.best(Budget.parse(f"{percent}%"), table)
        sad = next((m.sad for m in found.paths.measured if m.path == path), None)
        parameters = parameter_count(extract(found.supernet, path))
        rows.append(
            {"budget": f"{percent}%", "path": str(path), "macs": table.cost(path), "parameters": parameters, "sad": sad}
        )
    document = {
        "model": model,
        **costs,
        "parameters": parameter_count(found.supernet),
        "stage": found.document.get("stage"),
        "measured_paths": len(found.paths.measured),
        "weights_sha256": found.document["weights"]["sha256"],
        "budgets": rows,
        "path_prior": _path_prior(model, found),
    }
    cells = [
        (
            r["budget"],
            r["path"],
            f"{r['macs'] / 1e9:.3f}",
            f"{r['parameters'] / 1e6:.3f} M",
            "-" if r["sad"] is None else r["sad"],
        )
        for r in rows
    ]
    header = ("budget", "path", "GMACs", "parameters", "SAD (held-out, selection set)")
    text = (
        f"{model}: {costs['preset']}, {document['parameters'] / 1e6:.3f} M parameters, {costs['paths']} paths of "
        f"{table.smallest / 1e9:.3f} to {table.largest / 1e9:.3f} GMACs at {costs['size']}x{costs['size']}, "
        f"of which the colour prior {table.prior / 1e9:.3f}; trained up to stage {document['stage']}\n\n"
        + markdown_table(header, cells)
        + _path_prior_text(document["path_prior"])
    )
    return Result(document, text)


def _path_prior(model: str, found: Checkpoint) -> list[dict[str, float | None]]:
    """What the path prior knows more than chance, per budget; nothing if the network learned without one."""
    from .. import checkpoint
    from ..train.pathprior import prior_report, stored_prior

    prior = stored_prior(checkpoint.find(model), found.preset, found.document)
    return prior_report(prior) if prior else []


def _path_prior_text(rows: list[dict[str, float | None]]) -> str:
    from ..tables import markdown_table

    if not rows:
        return ""
    cells = [tuple("-" if value is None else value for value in row.values()) for row in rows]
    header = ("GMACs", "paths near", "votes", "share of the best", "concentration", "shuffled", "correlation")
    return f"\n\npath prior: does it know more than chance (concentration 1)? docs/path-learning.md\n\n{markdown_table(header, cells)}"
