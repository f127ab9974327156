"""docs/export.md says what the code does."""

from __future__ import annotations

from pathlib import Path as FilePath

from pam_export.docs import TABLES, filled
from pam_export.recipe import RECIPES
from pam_mobile.commands.export import PRECISIONS, TARGETS

PAGE = FilePath(__file__).resolve().parents[2] / "docs" / "export.md"


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in TABLES)
    assert filled(text) == text, "run: python -m pam_export.docs docs/export.md"
    assert all(f"| `{row.target}`" in text for row in RECIPES.values())


def test_the_help_names_every_target_and_precision() -> None:
    assert set(TARGETS.split(", ")) == {row.target for row in RECIPES.values()}
    assert set(PRECISIONS.split(", ")) == {row.precision for row in RECIPES.values()}


def test_an_outdated_table_is_made_anew() -> None:
    old = "a\n<!-- forms -->\n| old |\n<!-- end -->\nb\n"
    new = filled(old)
    assert "old" not in new
    assert new.startswith("a\n<!-- forms -->\n| form")
    assert new.endswith("<!-- end -->\nb\n")
    assert filled(new) == new
