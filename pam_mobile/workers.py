"""Independent pieces of work, one process per core."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Generic, TypeVar

from .errors import SetupError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 16
SECONDS_TO_END = 5.0


def worker_count() -> int:
    """How many processes are worth starting on this machine."""
    return min(os.cpu_count() or 1, MOST)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """function(item) of every item, in order, by fresh processes with one thread each, `chunk` items at a time.

    Function, items and results are pickled. Whatever goes wrong, Ctrl-C included, no process is left behind and none writes to the
    terminal. Raises what the function raises, SetupError if a process is killed.

    Every process has a pipe of its own: in a `ProcessPoolExecutor` all share one, and who is killed while it writes a result leaves
    the rest of it to be waited for, forever.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    waiting = iter(range(len(chunks)))
    done: dict[int, list[Result]] = {}
    crew: dict[Connection, _Worker[Item, Result]] = {}
    try:
        context = multiprocessing.get_context("spawn")
        for number in waiting:
            worker = _Worker(context, function)
            crew[worker.pipe] = worker
            worker.begin(number, chunks[number])
            if len(crew) == workers:
                break
        for following in range(len(chunks)):
            while following not in done:
                for pipe in connection.wait([pipe for pipe, worker in crew.items() if worker.busy]):
                    worker = crew[pipe]  # type: ignore[index]
                    done[worker.number] = worker.finish()
                    if (number := next(waiting, -1)) >= 0:
                        worker.begin(number, chunks[number])
            yield from done.pop(following)
    finally:
        for worker in crew.values():
            worker.dismiss()
        for worker in crew.values():
            worker.end()


class _Worker(Generic[Item, Result]):
    """A process that works on one chunk after the other."""

    def __init__(self, context: SpawnContext, function: Callable[[Item], Result]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self.number, self.busy = -1, False
        # The parent decides what Ctrl-C means; a process keeps the mask with which it was started. Starting the tracker clears it.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()  # so that the end of the process is the end of the pipe

    def begin(self, number: int, chunk: Sequence[Item]) -> None:
        self.number, self.busy = number, True
        with _killed_is_said():
            self.pipe.send_bytes(pickle.dumps(chunk))

    def finish(self) -> list[Result]:
        with _killed_is_said():
            answer = self.pipe.recv_bytes()
        self.busy = False
        results, error = pickle.loads(answer)
        if error is not None:
            raise error
        return results

    def dismiss(self) -> None:
        """A process that waits for work ends by itself; what it does else is of no use to anybody any more."""
        self.pipe.close()
        if self.busy:
            self.process.terminate()

    def end(self) -> None:
        self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()


@contextmanager
def _killed_is_said() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise SetupError("a worker process was killed", "free memory, then run the command again") from error


def _work(pipe: Connection, function: Callable[[Item], Result]) -> None:
    """Answer every chunk with (results, None) or ([], error), until the parent is gone. Plain pickles: torch's own share memory."""
    import torch

    torch.set_num_threads(1)
    # A lock that a library makes here (tqdm does) has no name then, and a worker that is ended leaves none to be cleaned up.
    multiprocessing.set_start_method("fork", force=True)
    while True:
        try:
            chunk = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = pickle.dumps(([function(item) for item in chunk], None))
        except Exception as error:
            answer = pickle.dumps(([], _portable(error)))
        try:
            pipe.send_bytes(answer)
        except OSError:
            return


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; if pickles cannot hold it, one that says what it was."""
    where = f"in a worker process:\n{traceback.format_exc()}"
    error.add_note(where)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(where)
    return error
