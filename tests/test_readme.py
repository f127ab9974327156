"""The commands of README.md and docs/: their options exist, and what they write to is not a folder of this checkout."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from pam_mobile.cli import ClickException, app

ROOT = Path(__file__).parents[1]
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "runs"}
"""A clone has these; `runs` is git-ignored and made for output."""
PROGRAMS = ("pam-mobile ", "torchrun --nproc-per-node 2 -m pam_mobile ")


def commands(text: str) -> list[list[str]]:
    """The words after the program's name of every line that is a command and nothing else."""
    lines = [line.strip() for line in text.splitlines()]
    starts = [(line, program) for line in lines for program in PROGRAMS if line.startswith(program)]
    return [shlex.split(line.removeprefix(program), comments=True) for line, program in starts]


def parse(words: list[str]) -> dict[str, object]:
    """The options of a command as typer reads them; nothing runs. Raises ClickException for what no verb knows."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if words[0] not in command.commands:
            raise typer.BadParameter(f"no verb {words[0]}")
        command, words = command.commands[words[0]], words[1:]
    return dict(command.make_context("pam-mobile", list(words)).params)


DOCUMENTED = [
    pytest.param(words, id=f"{file.name}-{' '.join(words)[:60]}")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for words in commands(file.read_text(encoding="utf-8"))
    if not any(word.isupper() or word.startswith("[") for word in words)
]


@pytest.mark.parametrize("words", DOCUMENTED)
def test_a_documented_command_is_understood_and_writes_beside_the_source(words: list[str]) -> None:
    out = parse(words).get("out")
    assert out is None or Path(str(out)).parts[0] not in TOP


def test_there_are_documented_commands_and_mistakes_in_them_are_seen() -> None:
    verbs = {param.values[0][0] for param in DOCUMENTED}
    assert {"predict", "train", "eval", "export", "verify", "bench"} <= verbs
    for wrong in (
        "export --model tiny-v2 --no-such-option 1 --out runs/a",
        "exports --out runs/a",
        "export --out runs/a",
    ):
        with pytest.raises(ClickException):
            parse(wrong.split())
    assert str(parse(["export", "--model", "tiny-v2", "--out", "export"])["out"]) in TOP
