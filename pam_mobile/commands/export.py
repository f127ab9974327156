"""pam-mobile export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..reporter import Reporter
from .common import Result, split, verb

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


@verb
def export(
    reporter: Reporter,
    model: Annotated[str, typer.Option(help="A run folder or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="The export folder; an older export there is replaced as a whole.")],
    budgets: Annotated[str, typer.Option(help="Budgets at the export's size, one artifact each.")] = "80%,90%,100%",
    to: Annotated[str, typer.Option(help="Targets: executorch, coreml.")] = "executorch,coreml",
    sizes: Annotated[str, typer.Option(help="Square input sizes, multiples of 32.")] = "512",
) -> Result:
    """Export one artifact per budget and target; each is executed and compared with PyTorch before it is published."""
    from .. import checkpoint

    sides = _sizes(sizes)
    found = checkpoint.load(checkpoint.find(model))
    manifest = export_checkpoint(found, split(budgets), split(to), sides, out, reporter)
    text = f"{summary(manifest)}\n\n{out}/manifest.json says all about them; check them again: pam-mobile verify {out}"
    return Result(manifest, text)


def export_checkpoint(
    found: Checkpoint, budgets: list[str], targets: list[str], sizes: list[int], out: Path, reporter: Reporter
) -> dict[str, Any]:
    """Export the best measured path of each budget; returns the manifest. Raises as pam_export.export_folder does."""
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
    return export_folder(found.supernet, choices, targets=targets, sizes=sizes, out=out, model=model, reporter=reporter)


def summary(manifest: dict[str, Any]) -> str:
    """The artifacts of a manifest as a table."""
    from ..tables import markdown_table

    rows = []
    for artifact in manifest["artifacts"]:
        size = sum(file["bytes"] for file in artifact["files"])
        parity = artifact["parity"]
        rows.append(
            (
                artifact["name"],
                artifact["macs"] / 1e9,
                f"{size / 1e6:.2f} MB",
                f"{parity['max_abs']:.1e}",
                parity["how"],
            )
        )
    cells = [(name, f"{macs:.3f}", size, difference, how) for name, macs, size, difference, how in rows]
    return markdown_table(("artifact", "GMACs", "size", "max difference", "how it was compared"), cells)


def _sizes(text: str) -> list[int]:
    parts = split(text)
    if not parts or any(not part.isdigit() or int(part) % 32 or not int(part) for part in parts):
        raise UsageError(
            f"--sizes {text!r} is not a list of multiples of 32", "write for example --sizes 512 or --sizes 512,1024"
        )
    return [int(part) for part in parts]
