"""The tables of docs/arm64.md, made from the committed rows: python export/arm64/page.py"""

from __future__ import annotations

import csv
from pathlib import Path as FilePath

from pam_export.device import LABEL, NETWORKS, PHONES, estimate
from pam_export.docs import filled
from pam_mobile.tables import markdown_table

ROOT = FilePath(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "arm64.md"
ROWS = ROOT / "export" / "results" / "arm64.csv"

Rows = dict[tuple[str, str], dict[str, dict[str, str]]]
"""By file and method, then by processor."""


def rows() -> Rows:
    found: Rows = {}
    with open(ROWS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["file"], row["method"]), {})[row["cpu"]] = row
    return found


def counts() -> str:
    """Every method that was run: instructions by core, and how far its alpha is from this machine's."""
    found = rows()
    cpus = sorted({cpu for by_cpu in found.values() for cpu in by_cpu})
    lines = []
    for (file, method), by_cpu in found.items():
        totals = [f"{float(by_cpu[cpu]['m_total']):.1f}" if cpu in by_cpu else "" for cpu in cpus]
        macs = int(next(iter(by_cpu.values()))["macs"])
        worst = max(float(row["max_difference"]) for row in by_cpu.values())
        lines.append([f"`{file}`", method, f"{macs / 1e9:.3f}", *totals, f"{worst:.1e}"])
    return markdown_table(["artifact", "method", "GMACs", *cpus, "largest difference"], lines)


def calibration() -> str:
    """The factor of each phone, and how wrong it is for the anchors."""
    head = ["phone", "core", "ms per M instructions", *(f"error {name}" for name in NETWORKS), "instructions per MAC"]
    lines = []
    for phone in PHONES:
        least, most = phone.calibrated
        errors = [f"{100 * error:+.0f} %" for error in phone.errors]
        lines.append([phone.name, phone.cpu, f"{phone.factor:.3f}", *errors, f"{least:.2f} to {most:.2f}"])
    return markdown_table(head, lines)


def estimates() -> str:
    """What the counts might mean, under the label without which they must not be read."""
    lines = []
    for (file, method), by_cpu in rows().items():
        guesses = []
        for phone in PHONES:
            row = by_cpu[phone.cpu]
            guesses.append(str(estimate(phone, float(row["m_total"]), int(row["macs"]), row["precision"])))
        lines.append([f"`{file}`", method, *guesses])
    return f"{LABEL}:\n\n{markdown_table(['artifact', 'method', *(f'{p.name}, ms' for p in PHONES)], lines)}"


TABLES = {"counts": counts, "calibration": calibration, "estimates": estimates}


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
