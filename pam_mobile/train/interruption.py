"""Ctrl-C and SIGTERM during training: the step is finished and saved first; a second signal does not wait for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2.0
"""torchrun repeats to its processes what a terminal has sent them already: with several, a repetition this soon is no second wish."""


class Interruption:
    """Which signal asked for the end, 0 for none."""

    def __init__(self, several: bool) -> None:
        self.number = 0
        self._at = 0.0
        self._several = several

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the first signal is only noted; the next one does what it did before.

        One that came too late for the block to heed it takes effect at its end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if not self.number:
                self.number, self._at = number, now
            elif not self._several or now - self._at > ECHO_SECONDS:
                handler = handlers[signal.Signals(number)]
                signal.signal(number, handler)
                signal.raise_signal(number)

        for number in SIGNALS:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.number and not self._several:
            signal.raise_signal(self.number)
