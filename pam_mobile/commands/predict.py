"""pam-mobile predict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..models import default
from ..reporter import Reporter
from .common import Result, verb


@verb
def predict(
    reporter: Reporter,
    image: Annotated[Path, typer.Argument(help="The photo.")],
    trimap: Annotated[
        Path, typer.Option(help="Grey image of the photo's size: white object, black background, grey unknown.")
    ],
    alpha: Annotated[Path, typer.Option(help="Where to write the alpha (.png or .tif); an older file is replaced.")],
    cutout: Annotated[
        Path | None, typer.Option(help="Where to write the cut-out with clean edge colours (RGBA .png).")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A run folder, a checkpoint, a shipped model (`pam-mobile info`) or `prior`.")
    ] = default(),
    budget: Annotated[str | None, typer.Option(help="Upper bound on compute: 4.5G or 80%.")] = None,
    selection: Annotated[str, typer.Option(help="How the path is chosen: auto, fixed, planned or stepwise.")] = "auto",
    bits: Annotated[int | None, typer.Option(help="8 or 16 bits per channel; default: as the photo.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> Result:
    """Cut an object out of one photo."""
    from ..budget import Budget
    from ..imageio import check_suffixes, read_photo, read_trimap, write_grey, write_rgba
    from ..predict.foreground import estimate_foreground
    from ..predict.matter import Matter

    if bits not in (None, 8, 16):
        raise UsageError(f"--bits {bits} is not possible", "use 8 or 16")
    check_suffixes(alpha, cutout)
    _refuse_overwriting({"the photo": image, "--trimap": trimap}, {"--alpha": alpha, "--cutout": cutout})
    wish = None if budget is None else Budget.parse(budget)
    matter = Matter.load(model, device, selection)
    photo = read_photo(image)
    height, width = photo.pixels.shape[:2]
    known = read_trimap(trimap, (height, width), str(image))
    matter.plan(height, width, wish)  # a budget that cannot be kept is refused before any work
    with reporter.progress(f"matting {image} ({width}x{height}) with {matter.name}", 1) as advance:
        found = matter.matte(photo.pixels, known, wish)
        advance()
    matte, plan = found.alpha, found.plan
    if plan.budget_macs is not None and plan.path and all(plan.path) and plan.budget_macs > plan.macs:
        reporter.say(f"budget {budget} is above the largest path, which runs")
    write_grey(alpha, matte, bits or photo.bits)
    if cutout:
        write_rgba(cutout, estimate_foreground(photo.pixels, matte), matte, bits or photo.bits, photo.icc)
    document = {
        "model": matter.name,
        "image": str(image),
        "size": [height, width],
        "alpha": str(alpha),
        "cutout": str(cutout) if cutout else None,
        "budget": budget,
        "path": str(plan.path) if plan.path else None,
        "macs": plan.macs,
    }
    path = f"path {plan.path}, " if plan.path else ""
    lines = [f"{alpha}: alpha by {matter.name}, {path}{plan.macs / 1e9:.3f} GMACs at {width}x{height}"]
    if cutout:
        lines.append(f"{cutout}: cut-out")
    if model == "prior":
        lines.append("this was the colour prior without a network; `pam-mobile train` or `make quickstart` makes one")
    return Result(document, "\n".join(lines))


def _refuse_overwriting(read: dict[str, Path], written: dict[str, Path | None]) -> None:
    """Raise UsageError if two of the files are one: a photo must not be lost to its own alpha."""
    seen = {os.path.realpath(path): name for name, path in read.items()}
    for name, path in written.items():
        if path is None:
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise UsageError(f"{name} {path} is {other} itself, which it would overwrite", "write to another file")
