"""Several datasets at a time, each in a process of its own with a place for its progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from tqdm import tqdm

from muppet_fairseq.errors import MuppetError

Item, Result = TypeVar("Item"), TypeVar("Result")

#: the line of the terminal that this process's progress bar has
_position = 0


def own_position() -> int:
    """The line, from 0, for this process's progress bar."""
    return _position


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[Result | MuppetError]:
    """Yield ``function(item)`` for each item in order, ``jobs`` at a time.

    A process that is killed (out of memory, say) gives a MuppetError for its item and for those not finished then.
    """
    context = multiprocessing.get_context("spawn")
    positions = context.SimpleQueue()
    for position in range(jobs):
        positions.put(position)
    lock, threads = context.RLock(), max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(positions, lock, threads)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in futures:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield MuppetError(
                        "a process was killed, perhaps for want of memory: what it had begun is not there; run the "
                        "same command again, with fewer --jobs"
                    )
        except BaseException:
            # what is half done has no name yet: nothing is lost
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(positions: SimpleQueue, lock: Any, threads: int) -> None:
    global _position
    _position = positions.get()
    tqdm.set_lock(lock)
    # the tokenizers of all processes share the cores
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    # an interrupted parent ends them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
