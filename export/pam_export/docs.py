"""The tables of docs/export.md, made from the code: python -m pam_export.docs docs/export.md"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath

from pam_mobile.commands.export import export
from pam_mobile.tables import markdown_table

from .parity import Gate
from .recipe import FORMS, RECIPES

COMMON = ("as_json", "quiet", "verbose")
"""Options that every verb has."""


def recipes() -> str:
    """Every kind of artifact, its gate, and how its numbers are checked."""
    head = ("target", "precision", "form", "file", "inputs", "gate", "how its numbers are checked")
    rows = [
        (
            f"`{row.target}`",
            row.precision,
            row.form,
            f".{row.suffix}",
            "8-bit images" if row.images else "float tensors",
            _gate(row.gate) if row.compared else "-",
            row.how,
        )
        for row in RECIPES.values()
    ]
    return markdown_table(head, rows)


def forms() -> str:
    return markdown_table(("form", "what it is"), [(f"`{name}`", what) for name, what in FORMS.items()])


def options() -> str:
    """The options of `pam-mobile export`."""
    rows = []
    for parameter in inspect.signature(export).parameters.values():
        if parameter.name not in COMMON:
            (option,) = parameter.annotation.__metadata__
            default = parameter.default
            shown = "required" if default is inspect.Parameter.empty else f"`{default}`" if default != "" else ""
            rows.append((f"`--{parameter.name}`", shown.lower(), option.help))
    return markdown_table(("option", "default", "meaning"), rows)


TABLES = {"recipes": recipes, "forms": forms, "options": options}


def filled(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """The text with every table between `<!-- NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{tables[match[1]]()}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(tables)}) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def _gate(gate: Gate) -> str:
    parts = [f"mean {gate.mean_abs:g}"]
    if gate.max_abs is not None:
        parts.insert(0, f"max {gate.max_abs:g}")
    if gate.sad is not None:
        parts.append(f"SAD {gate.sad:+.0%}")
    return ", ".join(parts)


if __name__ == "__main__":
    page = FilePath(sys.argv[1])
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
