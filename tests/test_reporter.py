"""Progress without a terminal: a line now and then, with an estimate of what is left."""

from __future__ import annotations

import time

import pytest

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
