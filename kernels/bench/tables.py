"""Write the tables of docs/kernels.md from the rows in kernels/bench/results/*.csv and those of the dispatch.

python kernels/bench/tables.py            rewrite the page
python kernels/bench/tables.py --check    exit code 1 if the page does not show the rows
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kernels.md"
RESULTS = ROOT / "kernels" / "bench" / "results"
DISPATCH = ROOT / "kernels" / "pam_kernels" / "tables"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
NOTHING = """\
**No row exists yet: no kernel has been timed on a GPU.** Nothing is known about the speed or the memory of the kernels. In the
mode `auto` PyTorch's operators run everywhere, so nothing is slower than before either.
"""
SHOWN = {
    "op": "op",
    "pass": "pass",
    "size": "k or C",
    "shape": "shape",
    "dtype": "dtype",
    "ms": "ms",
    "gb_per_s": "GB/s",
    "tflop_per_s": "TFLOP/s",
    "vs_cudnn_nchw": "vs cuDNN NCHW",
    "vs_cudnn_channels_last": "vs cuDNN channels_last",
    "vs_aten": "vs ATen",
    "vs_torch_compile": "vs torch.compile",
    "peak_vs_torch_compile": "peak memory vs torch.compile",
    "held_vs_torch_compile": "held memory vs torch.compile",
}


def tables(files: Iterable[Path]) -> str:
    """A section a file; a sentence if there is none."""
    sections = []
    for file in files:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        facts = [f"{rows[0][key]}" for key in ("torch", "triton", "cuda", "commit", "date_utc")]
        lines = [
            f"### {rows[0]['gpu']}\n",
            "torch {}, triton {}, CUDA {}, commit {}, {}; {}\n".format(*facts, f"`{file.name}`"),
            "| " + " | ".join(SHOWN.values()) + " |",
            "|" + " --- |" * len(SHOWN),
            *("| " + " | ".join(row[key] for key in SHOWN) + " |" for row in rows),
        ]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections) or NOTHING


TIMES = {
    "triton contiguous": "ours, NCHW",
    "triton channels_last": "ours, channels_last",
    "pytorch": "PyTorch NCHW",
    "aten": "ATen",
    "channels_last": "PyTorch channels_last",
    "torch_compile": "torch.compile",
}


def dispatch_tables(files: Iterable[Path]) -> str:
    """A section for each architecture: ms of every implementation, and how many times as fast ours is as the best other one."""
    sections = []
    for file in files:
        rows = json.loads(file.read_text())["rows"]
        pairs: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for row in rows:
            case = row["op"], row["dtype"], row["size"], row["stride"], *row["shape"]
            pairs.setdefault(case, {})[row["layout"]] = row
        names = (
            "op",
            "dtype",
            "k or C",
            "stride",
            "x",
            *(f"{name}, ms" for name in TIMES.values()),
            "gain, NCHW / channels_last",
        )
        lines = [
            f"### What the dispatch knows of {file.stem}\n",
            "{gpu}, torch {torch}, triton {triton}, {date}; `{0}`\n".format(file.name, **rows[0]),
            "| " + " | ".join(names) + " |",
            "|" + " --- |" * len(names),
        ]
        for key, pair in pairs.items():
            ms, gains = pair["contiguous"]["ms"], [pair[layout]["ratio"] for layout in ("contiguous", "channels_last")]
            times = [f"{ms[name]:.3f}" if name in ms else "" for name in TIMES]
            cells = [
                *map(str, key[:4]),
                "x".join(map(str, key[4:])),
                *times,
                " / ".join(f"{gain:.2f}" for gain in gains),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def page(text: str, results: Path, dispatch: Path = DISPATCH) -> str:
    """The page with its tables made again."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    parts = tables(sorted(results.glob("*.csv"))), dispatch_tables(sorted(dispatch.glob("*.json")))
    return before + BEGIN + "\n".join(part for part in parts if part) + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text()
    made = page(text, RESULTS)
    if parser.parse_args().check:
        return int(made != text)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
