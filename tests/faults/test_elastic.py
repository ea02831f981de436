"""Elastic: a run goes on with another number of workers at the same place of the global order."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.faults.audited import SUITE, lost_or_repeated, records, sub_batches, until_update
from tests.runs import Run, finished, parameters
from tests.toy_suite import options


def arguments(data: Path, save_dir: Path, size: int, workers: int, *more: str) -> list[str]:
    """Two epochs of updates of ``size`` sub-batches, whatever the number of workers; nothing random in the model, and
    an optimizer that does not blow up the rounding errors of gradients that are 0."""
    return [
        *options(data, save_dir, suite=SUITE),
        *("--audit", "--max-epoch", "2", "--disable-validation", "--max-tokens", "256", "--save-interval-updates", "2"),
        *("--keep-interval-updates", "1", "--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd"),
        *("--lr", "0.1", "--sub-batches", str(size), "--update-freq", str(-(-size // workers)), *more),
    ]


def close(save_dir: Path, reference: Path) -> bool:
    ours, theirs = parameters(save_dir), parameters(reference)
    return ours.keys() == theirs.keys() and all(
        torch.allclose(ours[key].double(), theirs[key].double(), atol=1e-5, rtol=1e-5) for key in theirs
    )


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory) -> Callable[..., Path]:
    """``undisturbed(size, *more)``: a run of one worker."""
    done: dict[tuple, Path] = {}

    def reference(size: int, *more: str) -> Path:
        if (size, *more) not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            finished(arguments(data, folder / "run", size, 1, *more), folder)
            done[size, *more] = folder / "run"
        return done[size, *more]

    return reference


#: sub-batches of an update, the workers of each attempt, more arguments. The first goes for ``make test``.
STOPPED: list[tuple[int, Sequence[int], tuple[str, ...]]] = [
    (6, (1, 2), ()),
    (4, (1, 2, 4, 2, 1), ()),
    (6, (2, 4, 1), ()),
    (6, (4, 1, 2, 4), ("--batching", "batch_homogeneous")),
    (6, (2, 1, 4, 1), ("--batching", "dataset_homogeneous", "--sampling", "temperature")),
    (5, (4, 2, 1, 4), ("--num-workers", "1")),
]


@pytest.mark.parametrize(("size", "numbers", "more"), STOPPED)
def test_stopped_and_resumed_with_other_numbers_of_workers(
    data, tmp_path, tries, ledger, undisturbed, size, numbers, more
):
    """Stopped by ``--max-update`` at places within an epoch and over its end."""
    tries((size, numbers, more) == STOPPED[0], 1)
    reference = undisturbed(size, *more)
    updates = len(sub_batches(reference))
    save_dir, recovery = tmp_path / "run", 0.0
    for attempt, workers in enumerate(numbers, 1):
        before = records(save_dir)
        until = -(-updates * attempt // len(numbers))
        stop = () if attempt == len(numbers) else ("--max-update", str(until))
        run = Run(arguments(data, save_dir, size, workers, *more, *stop), tmp_path, workers=workers)
        first = until_update(run, save_dir, before)
        assert run.wait() == [0] * workers, run.errors()
        if attempt > 1 and first is not None:
            recovery = max(recovery, first)
    _judge(ledger, "stop, resume with other workers", len(numbers) - 1, save_dir, reference, recovery)


@pytest.mark.parametrize("size", [4, 6])
def test_killed_and_resumed_with_other_numbers_of_workers(data, tmp_path, tries, ledger, undisturbed, size):
    """Killed at random moments; each attempt draws its number of workers."""
    wanted = tries(0, 10)
    reference = undisturbed(size)
    rng = random.Random(f"elastic {size}")
    number = 0
    while wanted:
        save_dir = tmp_path / str(number) / "run"
        number += 1
        killed, recovery, workers, statuses = 0, 0.0, 0, [1]
        while any(statuses):
            before = records(save_dir)
            workers = rng.choice([n for n in (1, 2, 4) if n != workers])
            run = Run(arguments(data, save_dir, size, workers), save_dir.parent, workers=workers)
            first = until_update(run, save_dir, before)
            if killed and first is not None:
                recovery = max(recovery, first)
            if killed < min(wanted, 5):
                time.sleep(rng.uniform(0, 0.5))
                run.kill(rng.randrange(workers))
                time.sleep(rng.uniform(0, 0.1))
                run.kill()
            statuses = run.wait()
            if any(statuses):
                assert -signal.SIGKILL in statuses, run.errors()
                killed += 1
        wanted -= killed
        _judge(ledger, "kill, resume with other workers", killed, save_dir, reference, recovery)


def _judge(ledger, row: str, tries: int, save_dir: Path, reference: Path, recovery: float) -> None:
    lost, same_order = lost_or_repeated(save_dir), sub_batches(save_dir) == sub_batches(reference)
    same_parameters = close(save_dir, reference)
    ledger.note(row, tries=tries, survived=same_order and same_parameters, lost=lost, recovery=recovery)
    assert lost == 0
    assert same_order
    assert same_parameters
