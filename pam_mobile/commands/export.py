"""pam-mobile export."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InterruptedRunError, UsageError
from ..reporter import Reporter
from .common import Result, Terminated, split, verb

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

TARGETS = "executorch, executorch-cond, coreml, torchscript, onnx, executorch-coreml, executorch-vulkan"
PRECISIONS = "fp32, fp16, int8, palette6"


@verb
def export(
    reporter: Reporter,
    model: Annotated[str, typer.Option(help="A shipped model, a run folder or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="The export folder; an older export there is replaced as a whole.")],
    budgets: Annotated[str, typer.Option(help="Budgets at the export's size.")] = "80%,90%,100%",
    to: Annotated[str, typer.Option(help=f"Targets: {TARGETS}.")] = "executorch,coreml",
    precision: Annotated[
        str, typer.Option(help=f"Of {PRECISIONS}; each target makes those it has, its first if none is given.")
    ] = "",
    sizes: Annotated[str, typer.Option(help="Square input sizes, multiples of 32.")] = "512",
    single: Annotated[bool, typer.Option(help="One file per budget and size.")] = True,
    shared: Annotated[bool, typer.Option(help="Also one file for all budgets and sizes, weights stored once.")] = False,
    adaptive: Annotated[
        bool, typer.Option(help="Also one file per size that chooses its path from image and budget.")
    ] = False,
) -> Result:
    """Export artifacts; each that can be run or interpreted here is compared with PyTorch before it is published."""
    from .. import checkpoint

    sides = _sizes(sizes)
    forms = [name for name, wanted in (("single", single), ("shared", shared), ("adaptive", adaptive)) if wanted]
    found = checkpoint.load(checkpoint.find(model))
    options = {"forms": forms, "precisions": split(precision)}
    try:
        manifest = export_checkpoint(found, split(budgets), split(to), sides, out, reporter, **options)
    except (KeyboardInterrupt, Terminated) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else 143
        hint = f"continue: {shlex.join(['pam-mobile', *sys.argv[1:]])}"
        raise InterruptedRunError("interrupted; nothing was published, what is complete is kept", hint, code) from end
    text = f"{summary(manifest)}\n\n{out}/manifest.json says all about them; check them again: pam-mobile verify {out}"
    return Result(manifest, text)


def export_checkpoint(
    found: Checkpoint,
    budgets: list[str],
    targets: list[str],
    sizes: list[int],
    out: Path,
    reporter: Reporter,
    **options: Any,
) -> dict[str, Any]:
    """Export the best measured path of each budget; returns the manifest.

    options: forms, precisions. Raises as pam_export.export_folder does.
    """
    from pam_export import BudgetPath, export_folder

    from ..budget import Budget
    from ..cost import CostTable

    table = CostTable.of(found.preset, sizes[0], sizes[0])
    wishes = [Budget.parse(text) for text in budgets]
    choices = [BudgetPath(wish, found.paths.best(wish, table)) for wish in wishes]
    model = {
        "name": found.preset.label,
        "weights_version": found.document.get("weights_version", 0),
        "weights_sha256": found.document["weights"]["sha256"],
        "licence": found.document.get("licence", "unknown"),
        "data_licence": found.document.get("data_licence", "unknown"),
    }
    return export_folder(
        found.supernet,
        choices,
        targets=targets,
        sizes=sizes,
        out=out,
        model=model,
        learned=found.learned_paths,
        reporter=reporter,
        **options,
    )


def summary(manifest: dict[str, Any]) -> str:
    """The artifacts of a manifest as a table."""
    from ..tables import markdown_table

    rows = []
    for artifact in manifest["artifacts"]:
        size = sum(file["bytes"] for file in artifact["files"])
        macs = sorted({method["macs"] / 1e9 for method in artifact["methods"]})
        parity = artifact["parity"]
        sad = "" if parity["sad_change"] is None else f"{parity['sad_change']:+.1%}"
        rows.append(
            (
                artifact["name"],
                "-".join(f"{value:.3f}" for value in dict.fromkeys((macs[0], macs[-1]))),
                f"{size / 1e6:.2f} MB",
                f"{parity['max_abs']:.1e}" if parity["compared"] else "-",
                sad,
                parity["how"],
            )
        )
    head = ("artifact", "GMACs", "size", "max difference", "SAD", "how it was compared")
    return markdown_table(head, rows)


def _sizes(text: str) -> list[int]:
    parts = split(text)
    if not parts or any(not part.isdigit() or int(part) % 32 or not int(part) for part in parts):
        raise UsageError(
            f"--sizes {text!r} is not a list of multiples of 32", "write for example --sizes 512 or --sizes 512,1024"
        )
    return [int(part) for part in parts]
