"""Worker processes that all datasets share, and threads that feed them several datasets at a time."""

from __future__ import annotations

import collections
import gc
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from muppet_fairseq.errors import MuppetError

Item, Result = TypeVar("Item"), TypeVar("Result")


class Workers:
    """``jobs`` processes, or none: with one job, all is done where it is asked for. A context manager."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None
        # enough for all to have something to do, and so few that what waits for its turn fits into the memory
        self._free = threading.Semaphore(3 * jobs)

    def __enter__(self) -> Workers:
        if self.jobs > 1:
            # forks have all that is imported and loaded here, and share its memory
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self.jobs, context, initializer=_start)
            # the first task starts all of them: now, before there are threads
            self._pool.submit(int).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield ``function(item)`` for each item in order. Items are asked for only when a process will soon be free.

        Raises:
            MuppetError: a process was killed.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        pending: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                # who waits for others must hold nothing that they wait for
                while not self._free.acquire(blocking=not pending):
                    yield self._first(pending)
                pending.append(self._pool.submit(function, item))
            while pending:
                yield self._first(pending)
        except BrokenProcessPool:
            raise MuppetError(
                "a process was killed, perhaps for want of memory: what it had begun is not there; run the same "
                "command again, with fewer --jobs"
            ) from None
        finally:
            for future in pending:
                future.cancel()
                self._free.release()

    def _first(self, pending: collections.deque[Future[Result]]) -> Result:
        result = pending[0].result()
        pending.popleft()
        self._free.release()
        return result


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], number: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, ``number`` at a time; the first exception is raised."""
    todo: queue.SimpleQueue[tuple[Item, Future[Result]]] = queue.SimpleQueue()
    futures: list[Future[Result]] = [Future() for _ in items]
    for task in zip(items, futures, strict=True):
        todo.put(task)

    def work() -> None:
        while True:
            try:
                item, future = todo.get_nowait()
            except queue.Empty:
                return
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)

    for _ in range(min(number, len(items))):
        # daemons: an interrupted program does not wait for a download; what is half done has no name yet
        threading.Thread(target=work, daemon=True).start()
    for future in futures:
        yield future.result()


def _start() -> None:
    # an interrupted parent ends them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # what has been imported stays: looking through it would only end its being shared with the other processes
    gc.freeze()
    # as many processes as wanted are enough: no threads of Hugging Face's tokenizers on top
    os.environ["RAYON_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its processes: they watch it."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
