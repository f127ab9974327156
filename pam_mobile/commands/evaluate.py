"""pam-mobile eval."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..reporter import Reporter
from .common import Result, split, verb

if TYPE_CHECKING:
    from ..budget import Budget
    from ..evaluate.controls import ControlRow
    from ..evaluate.images import ImageSet


@verb
def evaluate(
    reporter: Reporter,
    data: Annotated[
        str,
        typer.Option(
            help="A data set, a folder with image/, alpha/ and trimap/ (files of equal names), or `held-out`: procedural composites."
        ),
    ],
    model: Annotated[
        list[str] | None, typer.Option(help="A run folder, a checkpoint, or `prior` (default); may be repeated.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Budgets, for example 80%,90%; none: 100%, with --controls five below it.")
    ] = "",
    selection: Annotated[
        str, typer.Option(help="How paths are chosen: auto, fixed, planned, stepwise; several make several rows.")
    ] = "auto",
    baselines: Annotated[str, typer.Option(help="Further rows: half, prior, closed-form, knn.")] = "",
    against: Annotated[str, typer.Option(help="The model or baseline that SAD is compared with.")] = "prior",
    kinds: Annotated[str, typer.Option(help="Held-out: kinds of matte, for example hair,fur; none: all.")] = "",
    count: Annotated[int | None, typer.Option(help="Held-out: number of composites (64).")] = None,
    size: Annotated[int | None, typer.Option(help="Held-out: height and width in pixels (384).")] = None,
    seed: Annotated[int | None, typer.Option(help="Held-out: another seed is another set (0).")] = None,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="What the network's own choice of a path is worth at equal cost, instead."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> Result:
    """Score models: SAD, MSE, GRAD, CONN over the unknown pixels, and cost, per budget."""
    from ..budget import Budget
    from ..evaluate import baselines as simple
    from ..evaluate import contenders, report
    from ..evaluate import controls as control
    from ..predict.matter import PRIOR

    wishes = [Budget.parse(text) for text in split(budgets) or (control.BUDGETS if controls else ("100%",))]
    chosen = {"count": count, "size": size, "seed": seed}
    load = partial(_images, data, {k: v for k, v in chosen.items() if v is not None}, split(kinds), reporter)
    names = model or [PRIOR]
    if controls:
        if (selection, baselines, against) != (contenders.AUTO, "", PRIOR):
            raise UsageError(
                "--controls has rows of its own, so --selection, --baselines and --against do not go with it",
                "leave them out, or leave out --controls",
            )
        return _controls(names, load, wishes, seed or 0, device, reporter)
    extra = dict.fromkeys(name for name in [*split(baselines), *[PRIOR] * (against == PRIOR)] if name not in names)
    ways = split(selection)
    if not ways:
        raise UsageError("--selection names no selection", "write for example --selection fixed,planned")
    rivals = [*contenders.models(names, wishes, device, ways), *simple.baselines(list(extra), device)]
    report.check_reference(rivals, against)
    images = load()
    rows = report.evaluate(rivals, images, against, reporter)
    return Result(report.to_json(images, rows, against), report.to_text(images, rows, against))


def _controls(
    names: list[str], load: Callable[[], ImageSet], budgets: list[Budget], seed: int, device: str, reporter: Reporter
) -> Result:
    from ..evaluate import controls, seeds

    if len(set(names)) < len(names):
        raise UsageError("--controls was given the same network twice", "name networks of different training seeds")
    rate = [_controlled(name, budgets, seed, device, reporter) for name in names]
    images = load()
    tables = [of(images) for of in rate]
    if len(names) == 1:
        return Result(controls.to_json(images, tables[0]), controls.to_text(images, tables[0]))
    return Result(seeds.to_json(images, names, tables), seeds.to_text(images, names, tables))


def _controlled(
    name: str, budgets: list[Budget], seed: int, device: str, reporter: Reporter
) -> Callable[[ImageSet], list[ControlRow]]:
    """A network that has learned to choose, ready to be compared; refused before the images are made."""
    from .. import checkpoint
    from ..evaluate.controls import controls
    from ..predict.matter import choose_device
    from ..train.pathprior import stored_prior

    folder = checkpoint.find(name)
    found = checkpoint.load(folder)
    if not found.learned_paths:
        raise UsageError(f"{name} has not learned to choose paths", "train it with --stages 1,2,3")
    found.supernet.to(choose_device(device))
    prior = stored_prior(folder, found.preset, found.document)
    return lambda images: controls(found, images, budgets, prior, seed, reporter)


def _images(data: str, numbers: dict[str, int], kinds: list[str], reporter: Reporter) -> ImageSet:
    from ..data.synthetic import KINDS
    from ..evaluate.heldout import HELD_OUT, held_out_images
    from ..evaluate.images import images_of

    if data == HELD_OUT:
        return held_out_images(kinds=kinds or KINDS, reporter=reporter, **numbers)
    if numbers or kinds:
        options = ", ".join(f"--{name}" for name in [*numbers, *["kinds"] * bool(kinds)])
        raise UsageError(f"{options} only works with --data {HELD_OUT}", f"leave it out, or score on {HELD_OUT}")
    return images_of(data)
