"""Work in processes: results in order, errors whole, and nobody left behind."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path as FilePath

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


def test_idle_workers_end_by_themselves(tmp_path: FilePath) -> None:
    """So what a library does at exit is done: Core ML tools remove their temporary folders then."""
    assert list(in_processes(_write_at_exit, [tmp_path / "a"], 1)) == [None]
    assert (tmp_path / "a").exists()


def _write_at_exit(path: FilePath) -> None:
    atexit.register(path.touch)


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


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_worker_that_ends_in_the_middle_of_a_result_is_not_waited_for(end: str) -> None:
    """What it has written is in the pipe, and who shares a pipe among workers waits for the rest forever."""
    results = in_processes(_much, [1, 1 << 24], 1)
    assert len(next(results)) == 1
    deadline = time.monotonic() + 60
    (worker,) = multiprocessing.active_children()
    while not _waits_for_its_pipe(worker.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if end == "kill":
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(SetupError, match="a worker process was killed"):
            list(results)
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def _much(size: int) -> bytes:
    return bytes(size)


def _waits_for_its_pipe(pid: int | None) -> bool:
    """Whether a process is stopped in a write to its pipe (a socket), which is full."""
    return "send" in FilePath(f"/proc/{pid}/wchan").read_text()


def test_ctrl_c_at_any_moment_ends_all_processes(tmp_path: FilePath) -> None:
    """Sent to the whole group, as a terminal does, while workers start, work and write large results."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("COUNT", "10000"))
    for delay in (0.0, 0.5, 1.5, 3.0):
        with subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            said, complaints = process.communicate(timeout=60)
        assert (said, complaints, process.returncode) == ("interrupted\n", "", 0)
        deadline = time.monotonic() + 20  # multiprocessing's own helper ends a moment later
        while _alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_end_of_the_work_is_as_quiet(tmp_path: FilePath) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("COUNT", "4"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("begun\n", "", 0)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


SCRIPT = """
import multiprocessing, os, signal
from pam_mobile.workers import in_processes
def work(size):
    global lock
    lock = multiprocessing.RLock()  # as tqdm makes one
    return os.urandom(size)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a script
    print("begun", flush=True)
    try:
        for _ in in_processes(work, [1 << 22] * COUNT, 2, chunk=2):
            pass
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_the_caller_gets_the_worker_s_traceback_and_what_pickles_cannot_hold_as_text() -> None:
    with pytest.raises(ValueError, match="plain") as caught:
        list(in_processes(_fail_in_words, ["plain"], 2))
    assert "_fail_in_words" in "".join(caught.value.__notes__)
    with pytest.raises(RuntimeError, match=r"(?s)_fail_in_words.*_LocalError: strange"):
        list(in_processes(_fail_in_words, ["strange"], 2))
    with pytest.raises(FileNotFoundError):  # not taken for a lost process
        list(in_processes(os.stat, ["/nowhere"], 1))


def _fail_in_words(word: str) -> None:
    raise ValueError(word) if word == "plain" else _LocalError(word, 1)


class _LocalError(Exception):
    """Cannot be unpickled: it is made of two arguments and keeps one."""

    def __init__(self, word: str, number: int) -> None:
        super().__init__(word)


def _die_at_zero(item: int) -> int:
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_the_errors_of_this_package_keep_their_hint_between_processes() -> None:
    error = pickle.loads(pickle.dumps(IntegrityError("what", "what to do")))
    assert (type(error), error.message, error.hint) == (IntegrityError, "what", "what to do")
