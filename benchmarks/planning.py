"""What it takes a worker of 64 to plan an epoch of 4.8 million examples, and of ten times as many (Linux)."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from benchmarks.corpus import FORMS, corpus, laid_out
from benchmarks.measure import Target, memory, spread
from muppet_fairseq.data.iterator import ScheduleIterator
from muppet_fairseq.data.schedule import BatchSchedule, Sizes, SubBatchLimits
from preprocess.catalog import CATALOG

#: how many times more examples in the second measurement
LARGER = 10
#: seconds between two looks at the memory
_INTERVAL = 0.002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=float, default=4.8e6, help="of the 46 datasets (default: %(default)g)")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=4400, help="of a sub-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for temporary files; default: the system's")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for both sizes, the seconds, the most memory while planning, and what a worker keeps of it, in MB.

    Memory is what the process has for itself; the lengths are mapped from files. Each size has a process of its own.
    """
    figures = {}
    for times in (1, LARGER):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            items = write_sizes(Path(name), args.examples * times)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                planned = process.submit(measure, Path(name), args.workers, args.max_tokens, args.rounds).result()
        figures[f"{args.examples * times / 1e6:g} million examples"] = {"items": items} | planned
    small, large = figures.values()
    ratio = large["cpu_seconds"]["median"] / LARGER / small["cpu_seconds"]["median"]
    count = f"{args.examples / 1e6:g} million examples"
    targets = [
        Target(f"seconds to plan {count}", small["seconds"]["median"], 2.0, at_least=False),
        Target(f"MB at most while planning {count}", small["peak_mb"], 500.0, at_least=False),
        Target(f"CPU seconds for {LARGER} x as many, / {LARGER}, / those for {count}", ratio, 1.2, at_least=False),
        Target(
            f"MB a worker keeps more of {LARGER} x as many", large["kept_mb"] - small["kept_mb"], 5.0, at_least=False
        ),
    ]
    return {"workers": args.workers, "figures": figures, "targets": [target.to_dict() for target in targets]}


def write_sizes(folder: Path, examples: float) -> int:
    """Write what the schedule needs to know of so many examples of the 46 datasets; return the number of items."""
    published = sum(CATALOG[name].published["train"] for name in FORMS)
    items = 0
    for number, dataset in enumerate(corpus(examples / published)):
        sizes = laid_out(dataset).sizes
        items += len(sizes.lengths)
        stored = {"lengths": sizes.lengths, "written": sizes.written}
        # one row an example takes no memory
        stored["rows"] = sizes.rows if sizes.rows.strides[0] else None
        for what, values in stored.items():
            if values is not None:
                np.save(folder / f"{number:02}.{what}.npy", values)
    return items


def read_sizes(folder: Path) -> list[Sizes]:
    """Map what :func:`write_sizes` has written."""
    datasets = []
    for path in sorted(folder.glob("*.lengths.npy")):
        number = path.name.partition(".")[0]
        lengths = np.load(path, mmap_mode="r")
        rows, written = folder / f"{number}.rows.npy", folder / f"{number}.written.npy"
        datasets.append(
            Sizes(
                number,
                lengths,
                np.load(rows, mmap_mode="r") if rows.exists() else np.broadcast_to(np.int32(1), len(lengths)),
                np.load(written, mmap_mode="r") if written.exists() else None,
            )
        )
    return datasets


def measure(folder: Path, workers: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    """Plan the first epoch as a worker does, once for the memory and then for the time.

    Planning has one thread: where its seconds are more than those of the processor, it had to wait for others.
    """
    datasets = read_sizes(folder)
    # the first use of numpy's functions is not counted
    _iterator(datasets[:1], workers, max_tokens).share(1)
    before = memory("self")["anonymous"]
    iterator = _iterator(datasets, workers, max_tokens)
    with _Peak() as peak:
        share = iterator.share(1)
    kept = memory("self")["anonymous"] - before
    seconds, cpu_seconds = [], []
    for _ in range(rounds):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        _iterator(datasets, workers, max_tokens).share(1)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
    return {
        "sub_batches": share.sub_batches,
        "seconds": spread(seconds),
        "cpu_seconds": spread(cpu_seconds),
        "peak_mb": round(peak.megabytes - before, 1),
        "kept_mb": round(kept, 1),
    }


class _NoData(Dataset):
    """In the place of the data, of which only the sizes are needed."""


def _iterator(datasets: list[Sizes], workers: int, max_tokens: int) -> ScheduleIterator:
    return ScheduleIterator(
        _NoData(),
        lambda epoch, size: BatchSchedule(
            datasets, SubBatchLimits(max_tokens), sub_batches_per_update=size, epoch=epoch
        ),
        update_freq=[1],
        num_shards=workers,
        shard_id=workers // 2,
        collate_fn=list,
    )


class _Peak(threading.Thread):
    """The most memory of this process inside a ``with``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.megabytes = max(self.megabytes, memory("self")["anonymous"])

    def __enter__(self) -> _Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
