"""Runs with ``--audit``, and what it says of them."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

from muppet_fairseq.audit import FOLDER, attempts, describe, history
from tests.runs import Run, equal, parameters

#: one worker's updates of four sub-batches; an epoch has five of them
SUITE = "pairs,choices,spans"


def lost_or_repeated(save_dir: Path) -> int:
    """Examples that the epochs of a run have lost or had more than once."""
    figures = describe(save_dir / FOLDER)
    return figures["lost"] + figures["repeated"]


def sub_batches(save_dir: Path) -> dict[int, list[tuple[int, list[int]]]]:
    """What each update was made of in the end, all workers together."""
    updates = defaultdict(list)
    for _, update, counts in history(attempts(save_dir / FOLDER)):
        if counts:
            updates[update.update] += [(dataset, sorted(items)) for dataset, items in update.sub_batches]
    return {number: sorted(together) for number, together in sorted(updates.items())}


def same(save_dir: Path, reference: Path) -> bool:
    """Whether a run ended with the parameters and optimizer state of another, update by update of the same data."""
    return equal(parameters(save_dir), parameters(reference)) and sub_batches(save_dir) == sub_batches(reference)


def records(save_dir: Path) -> set[Path]:
    """The files of the first worker's attempts."""
    return set((save_dir / FOLDER).glob("*.worker-000.jsonl"))


def has_update(record: Path) -> bool:
    return record.read_bytes().count(b"\n") > 1


def until_update(run: Run, save_dir: Path, before: set[Path]) -> float | None:
    """Wait until a run that began when there were these :func:`records` has done an update; the seconds from its
    start, or None where it has ended without one."""
    while all(process.is_alive() for process in run.processes):
        if any(map(has_update, records(save_dir) - before)):
            return time.monotonic() - run.started
        time.sleep(0.01)
    return None
