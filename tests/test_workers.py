"""Work in processes: results in order, errors whole, and nobody left behind."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import time

import pytest

from pam_mobile.errors import IntegrityError, SetupError
from pam_mobile.workers import in_processes


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(in_processes(math.sqrt, [float(i * i) for i in range(9)], 2, chunk=2)) == list(range(9))
    assert multiprocessing.active_children() == []


def test_an_error_arrives_and_ends_all_processes() -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(in_processes(math.sqrt, [4.0, -1.0, 9.0], 2))
    assert multiprocessing.active_children() == []


def test_who_stops_listening_ends_all_processes_at_once() -> None:
    results = in_processes(time.sleep, [0.0, 600.0, 600.0], 2)
    assert next(results) is None
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_killed_worker_ends_the_work_at_once_and_leaves_nobody(killed_at: int) -> None:
    start = time.monotonic()
    with pytest.raises(SetupError, match="a worker process was killed") as caught:
        list(in_processes(_die_at_zero, list(range(killed_at, killed_at - 8, -1)), 2))
    assert caught.value.code == 4
    assert time.monotonic() - start < 30
    assert multiprocessing.active_children() == []


def _die_at_zero(item: int) -> int:
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_the_errors_of_this_package_keep_their_hint_between_processes() -> None:
    error = pickle.loads(pickle.dumps(IntegrityError("what", "what to do")))
    assert (type(error), error.message, error.hint) == (IntegrityError, "what", "what to do")
