"""Show which examples a run was trained on, lost or repeated, from what ``fairseq-train --audit`` has recorded.

Every worker of every attempt (each start of the command) has a file of JSON lines: a header, then one line an update.
An attempt that ends goes on from a checkpoint, so what it did after that is done again: an attempt's first update
takes the place of all that earlier attempts did from that number on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from muppet_fairseq.data.schedule import choose_examples
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import unwritable

#: of a run's --save-dir
FOLDER = "audit"
_FILE = re.compile(r"attempt-(\d+)\.worker-(\d+)\.jsonl")


# -- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What an epoch should hold: the first line of a file.

    ``examples`` are those of each dataset that the schedule counts (a passage's windows one by one).
    """

    workers: int
    datasets: list[str]
    examples: list[int]
    batching: str
    sampling: str
    sampling_temperature: float
    seed: int

    def planned(self, epoch: int) -> list[np.ndarray]:
        """How often an epoch has each example, one array ``[examples]`` for each dataset."""
        if self.sampling == "natural":
            return [np.ones(size, dtype=np.int64) for size in self.examples]
        rng = np.random.default_rng([self.seed, epoch])  # the schedule's
        chosen = choose_examples(self.examples, self.sampling, self.sampling_temperature, rng)
        return [np.bincount(own, minlength=size) for own, size in zip(chosen, self.examples, strict=True)]


class Audit:
    """Records what this worker is trained on.

    Sub-batches belong to an update when its optimizer step is done. What was collected for an update that did not
    happen (an overflow in fp16) or that is computed again is forgotten by :meth:`begin_update`; what was left out on
    purpose is written with the next update that happens.

    Args:
        folder: of all attempts and workers.
        header: what is to be trained on.

    Raises MuppetError, here and in all methods, where the file cannot be written.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        worker = distributed.get_rank() if together else 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            attempt = 1 + max((int(match[1]) for match in map(_FILE.fullmatch, os.listdir(folder)) if match), default=0)
            attempt = _of_first_worker(attempt) if together else attempt
            self.path = folder / f"attempt-{attempt:04}.worker-{worker:03}.jsonl"
            self._file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise unwritable(folder, error) from None
        self._together = together
        self._epoch = 0
        self._sub_batches: list[list] = []
        self._skipped: list[list] = []
        self._write(asdict(header))

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def begin_update(self) -> None:
        """Forget what was collected: an update is computed from here on."""
        self._sub_batches = []

    def trained(self, sample: dict[str, Any]) -> None:
        """Collect a sub-batch whose gradient goes into the update."""
        self._sub_batches.append([sample["dataset"], sample["items"].tolist()])

    def skipped(self, sample: dict[str, Any]) -> None:
        """Collect a sub-batch that is left out (``--on-bad-loss skip``)."""
        self._skipped.append([sample["dataset"], sample["items"].tolist()])

    def end_update(self, update: int, *, ends_epoch: bool) -> None:
        """Write the line of update number ``update``, which is done; it survives the end of this process."""
        line = {"epoch": self._epoch, "update": update, "ends_epoch": ends_epoch, "sub_batches": self._sub_batches}
        self._write(line | {"skipped": self._skipped})
        self._sub_batches, self._skipped = [], []

    def sync(self) -> None:
        """Wait until the lines of all workers are on the disk. Called before a checkpoint is written: the updates in
        it are not done again, so their lines must survive the end of the machine, and of other workers."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None
        if self._together:
            distributed.barrier()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from None


def _of_first_worker(number: int) -> int:
    holder = torch.tensor([number], device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(holder, src=0)
    return int(holder)


# -- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """One worker's part of an update: its sub-batches, as a dataset's index and examples within it, and those that were
    left out."""

    epoch: int
    update: int
    ends_epoch: bool
    sub_batches: list[tuple[int, list[int]]]
    skipped: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Attempt:
    """One start of the command: its files, one for each worker that came to write a header."""

    number: int
    files: tuple[Path, ...]

    @cached_property
    def header(self) -> Header:
        return _header(self.files[0])

    @cached_property
    def first(self) -> float:
        """Its first update's number; infinity where it did none."""
        return min(
            (update.update for file in self.files for update in itertools.islice(_updates(file), 1)), default=math.inf
        )

    def updates(self) -> Iterator[Update]:
        """Its updates, worker by worker."""
        for file in self.files:
            yield from _final(file)


def attempts(folder: Path) -> list[Attempt]:
    """The attempts recorded in a folder, in order. Raises MuppetError where there are none."""
    files: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        match = _FILE.fullmatch(path.name)
        if match and any(_lines(path)):
            files[int(match[1])].append(path)
    if not files:
        raise MuppetError(
            f"{folder}: there is no record of a training here; train with --audit, and name its --save-dir"
        )
    return [Attempt(number, tuple(files[number])) for number in sorted(files)]


def history(runs: Sequence[Attempt]) -> Iterator[tuple[Attempt, Update, bool]]:
    """All updates of all workers, attempt by attempt, with whether they count: those of later attempts win."""
    until = [math.inf]
    for attempt in runs[:0:-1]:
        until.append(min(until[-1], attempt.first))
    for attempt, end in zip(runs, reversed(until), strict=True):
        for update in attempt.updates():
            yield attempt, update, update.update < end


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines with their numbers, but for a last one that a kill has cut off: its update is in no checkpoint."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, json.loads(line)
    except ValueError:
        raise _unreadable(path, number) from None
    except OSError as error:
        raise MuppetError(f"cannot read {path} ({error.strerror})") from None


def _unreadable(path: Path, line: int) -> MuppetError:
    return MuppetError(f"{path}: line {line} is not what --audit writes; restore the file or leave its run out")


def _header(path: Path) -> Header:
    number, line = next(_lines(path))
    try:
        header = Header(**line)
        _check_integers(header.examples)
        if len(header.planned(1)) != len(header.datasets):
            raise ValueError
        return header
    except (TypeError, ValueError):
        raise _unreadable(path, number) from None


def _check_integers(values: list[Any]) -> None:
    if set(map(type, values)) != {int}:
        raise TypeError


def _updates(path: Path) -> Iterator[Update]:
    sizes = _header(path).examples
    for number, line in itertools.islice(_lines(path), 1, None):
        try:
            update = Update(**line)
            _check_integers([update.epoch, update.update])
            for dataset, items in update.sub_batches + update.skipped:
                _check_integers(items)
                if min(items) < 0 or max(items) >= sizes[dataset]:
                    raise ValueError
        except (TypeError, ValueError, IndexError):
            raise _unreadable(path, number) from None
        yield update


def _final(path: Path) -> Iterator[Update]:
    """The updates of a file without those that the next line has again: they were computed, but not kept."""
    last = None
    for update in _updates(path):
        if last is not None and last.update < update.update:
            yield last
        last = update
    if last is not None:
        yield last


# -- the command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("save_dir", metavar="SAVE_DIR", help="the --save-dir of a training with --audit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    described = describe(Path(args.save_dir) / FOLDER)
    print(json.dumps(described) if args.json else _table(described))


class _Epoch:
    """What was trained on in one epoch."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.seen, self.skipped = ([np.zeros(size, dtype=np.uint16) for size in header.examples] for _ in range(2))
        self.updates: set[int] = set()
        self.finished = False

    def add(self, update: Update) -> None:
        self.updates.add(update.update)
        self.finished |= update.ends_epoch
        for counts, sub_batches in ((self.seen, update.sub_batches), (self.skipped, update.skipped)):
            for dataset, items in sub_batches:
                np.add.at(counts[dataset], items, 1)

    def figures(self, epoch: int) -> dict[str, Any]:
        """Of each dataset: ``once``, its examples that were trained on as often as planned (which without --sampling is
        once); ``skipped``, left out for their loss; ``lost`` and ``repeated``, how many times too few and too many;
        ``left``, what an unfinished epoch has yet to bring."""
        datasets = {}
        counts = (self.header.datasets, self.seen, self.skipped, self.header.planned(epoch))
        for name, seen, skipped, planned in zip(*counts, strict=True):
            excess = seen.astype(np.int64) + skipped - planned
            missing = int(-excess[excess < 0].sum())
            datasets[name] = {
                "examples": len(seen),
                "once": int(((excess == 0) & (skipped == 0)).sum()),
                "skipped": int(skipped.sum()),
                "lost": missing if self.finished else 0,
                "repeated": int(excess[excess > 0].sum()),
                "left": 0 if self.finished else missing,
            }
        return {"epoch": epoch, "updates": len(self.updates), "finished": self.finished, "datasets": datasets}


def describe(folder: Path) -> dict[str, Any]:
    """What the audit in a folder says, in all and for each epoch and dataset.

    Raises MuppetError for files that are no audit, or where attempts at one epoch had different data.
    """
    runs = attempts(folder)
    epochs: dict[int, _Epoch] = {}
    again: set[tuple[int, int]] = set()
    for attempt, update, counts in history(runs):
        if not counts:
            again.add((attempt.number, update.update))
            continue
        epoch = epochs.setdefault(update.epoch, _Epoch(attempt.header))
        if epoch.header.examples != attempt.header.examples:
            raise MuppetError(
                f"{folder}: attempts at epoch {update.epoch} had different data; give each suite its own --save-dir"
            )
        epoch.add(update)
    for number, epoch in epochs.items():
        epoch.finished |= number < max(epochs)
    figures = [epochs[number].figures(number) for number in sorted(epochs)]
    total = {
        key: sum(dataset[key] for epoch in figures for dataset in epoch["datasets"].values())
        for key in ("skipped", "lost", "repeated")
    }
    return {
        "attempts": len(runs),
        "updates": sum(epoch["updates"] for epoch in figures),
        "updates_done_again": len(again),
        **total,
        "epochs": figures,
    }


def _table(described: dict[str, Any]) -> str:
    lines = [f"{key.replace('_', ' '):20} {value:,}" for key, value in described.items() if key != "epochs"]
    columns = ("examples", "once", "skipped", "lost", "repeated", "left")
    for epoch in described["epochs"]:
        state = "" if epoch["finished"] else ", not finished"
        title = f"epoch {epoch['epoch']}, {epoch['updates']:,} updates{state}"
        lines += ["", f"{title:32}" + "".join(f"{column:>12}" for column in columns)]
        for name, figures in epoch["datasets"].items():
            lines.append(f"  {name:30}" + "".join(f"{figures[column]:>12,}" for column in columns))
    return "\n".join(lines)
