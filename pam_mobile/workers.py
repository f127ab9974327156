"""Independent pieces of work, one process per core."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from .errors import SetupError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 16


def worker_count() -> int:
    """How many processes are worth starting on this machine."""
    return min(os.cpu_count() or 1, MOST)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """function(item) of every item, in order, by fresh processes with one thread each.

    Items and results are pickled. Whatever goes wrong, Ctrl-C included, no process is left behind and none writes to the terminal.
    Raises SetupError if one of them is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare)
    finished = False
    try:
        yield from pool.map(function, items, chunksize=chunk)
        finished = True
    except BrokenProcessPool as error:
        raise SetupError("a worker process was killed", "free memory, then run the command again") from error
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    import torch

    torch.set_num_threads(1)
