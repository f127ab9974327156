"""pam-mobile bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..reporter import Reporter
from .common import Result, verb

COLUMNS = {
    "file": "artifact",
    "method": "method",
    "budget": "budget",
    "path": "path",
    "macs": "GMACs",
    "file_mb": "MB",
    "ms_p50": "ms p50",
    "ms_p90": "ms p90",
    "peak_mb": "peak MB",
    "macs_vs_largest": "MACs / largest",
    "ms_vs_largest": "ms / largest",
    "ms_vs_fp32": "ms / fp32",
    "ms_vs_single": "ms / fixed",
    "note": "",
}
DIGITS = {"ms_p50": 1, "ms_p90": 1, "peak_mb": 0}
BUSY = 0.7
"""Load average above which times mean little."""


@verb
def bench(
    reporter: Reporter,
    folder: Annotated[Path, typer.Argument(help="An export folder.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of every runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each artifact, after the warm-up.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows to this CSV file, outside the export folder.")
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="CSV file of export/arm64/run.py, for counts and estimates.")
    ] = None,
) -> Result:
    """Time every artifact of an export folder on this machine, in turns, and show what is known of it elsewhere."""
    from pam_export import bench as library
    from pam_export import rows as table

    from ..errors import UsageError

    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{out} is inside the export folder, whose manifest lists every file", "choose another --out")
    rows = library.bench_folder(folder, threads=threads, runs=runs, counts=counts or library.COUNTS, reporter=reporter)
    if out is not None:
        table.write(out, rows)
    return Result({"folder": str(folder), "rows": rows}, "\n\n".join([_table(rows), *_notes(rows, out)]))


def _table(rows: list[dict[str, Any]]) -> str:
    from ..tables import markdown_table

    shown = {key: title for key, title in COLUMNS.items() if any(row[key] != "" for row in rows)}
    return markdown_table(list(shown.values()), [[_cell(key, row[key]) for key in shown] for row in rows])


def _cell(key: str, value: Any) -> str:
    if key == "macs":
        return f"{value / 1e9:.3f}"
    return f"{value:.{DIGITS.get(key, 2)}f}" if isinstance(value, float) else str(value)


def _notes(rows: list[dict[str, Any]], out: Path | None) -> list[str]:
    first = rows[0]
    notes = [
        f"{first['runs']} runs in turns, threads: {first['threads']}, {first['machine']}; these are no phone's times"
    ]
    if first["load_before"] > BUSY:
        notes.append(f"warning: other programs were running (load {first['load_before']}): the times mean little")
    notes += _estimates(rows)
    return notes + ([f"rows written to {out}"] if out is not None else [])


def _estimates(rows: list[dict[str, Any]]) -> list[str]:
    """A table of counted instructions and what they might mean, under its label; nothing if nothing was counted."""
    from pam_export.device import LABEL, PHONES, estimate

    from ..tables import markdown_table

    header = ["artifact", "method"]
    for phone in PHONES:
        header += [f"M instructions, {phone.cpu}", f"{phone.name}, ms"]
    lines = []
    for row in rows:
        line = [row["file"], row["method"]]
        for phone in PHONES:
            total = row[f"m_instructions_{phone.cpu}"]
            line += [total, "" if total == "" else str(estimate(phone, total, row["macs"], row["precision"]))]
        if any(line[2:]):
            lines.append(line)
    return [f"{LABEL}:\n\n{markdown_table(header, lines)}"] if lines else []
