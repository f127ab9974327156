"""Progress without a terminal: a line now and then, with an estimate of what is left."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from pam_mobile import reporter
from pam_mobile.reporter import Reporter


def test_the_time_left_follows_from_this_sittings_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now)
    with Reporter().progress("training", 1000, 900) as advance:
        for _ in range(10):
            now += 2.0
            advance()
    said = capsys.readouterr().err.splitlines()
    assert said == ["training ...", "training: 908/1000, about 184 s left", "training: done in 20.0 s"]
    assert time.monotonic() == now


def test_a_bar_shows_names_of_files_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:

    shown = Reporter()
    shown.console = Console(stderr=True, force_terminal=True, width=200)
    with shown.progress("matting pics [/old]/cat [copy].png", 1) as advance:
        advance(note="[/b] done")
    said = capsys.readouterr().err
    assert "matting pics [/old]/cat [copy].png" in said
    assert "[/b] done" in said
