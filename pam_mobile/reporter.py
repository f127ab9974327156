"""What a running command tells its user: progress and messages on stderr, the result on stdout.

On a terminal, progress is a bar with an ETA; elsewhere it is a plain line now and then. Library code takes a Reporter and never prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
"""Without a terminal, one progress line at most this often."""

Advance = Callable[..., None]
"""advance(steps=1, note="") reports progress and an optional short note such as the loss."""


class Reporter:
    """Reports to stderr. verbosity: -1 errors only, 0 normal, 1 with details."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        if self.verbosity >= 0:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False)

    def detail(self, text: str) -> None:
        if self.verbosity >= 1:
            self.console.print(text, markup=False)

    @contextmanager
    def progress(self, title: str, total: int, before: int = 0) -> Iterator[Advance]:
        """Context in which the yielded `advance` is called until `total` steps are done, `before` of them earlier."""
        if self.verbosity < 0:
            yield lambda steps=1, note="": None
        elif self.console.is_terminal:
            yield from self._bar(title, total, before)
        else:
            yield from self._lines(title, total, before)

    def _bar(self, title: str, total: int, before: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False),  # titles hold names of files, and these brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(title, total=total, completed=before, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                fields: dict[str, Any] = {"note": note} if note else {}
                bar.update(task, advance=steps, **fields)

            yield advance

    def _lines(self, title: str, total: int, before: int) -> Iterator[Advance]:
        start = shown = time.monotonic()
        done = before
        self.say(f"{title} ...")

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal shown, done
            done += steps
            now = time.monotonic()
            if now - shown >= PLAIN_SECONDS and done < total:
                shown = now
                left = (now - start) / (done - before) * (total - done)
                self.say(f"{title}: {done}/{total}, about {left:.0f} s left{', ' + note if note else ''}")

        yield advance
        self.say(f"{title}: done in {time.monotonic() - start:.1f} s")


class Silent(Reporter):
    """Reports nothing: for library use and tests."""

    def __init__(self) -> None:
        super().__init__(verbosity=-1)

    def warn(self, text: str) -> None:
        pass
