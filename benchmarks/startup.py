"""From the command to the first update, and the memory and the time that data take, at the size of the 46 datasets."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import muppet_fairseq
from benchmarks.corpus import FORMS, DatasetLengths, corpus
from benchmarks.measure import Target, memory, spread
from benchmarks.training import collate, open_task
from muppet_fairseq.data.iterator import give_back_memory
from muppet_fairseq.data.schedule import BatchSchedule, SubBatchLimits
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import read_dataset_json
from preprocess.binarize import Packed, binarize
from preprocess.catalog import CATALOG
from preprocess.convert import Split

#: examples that are drawn at a time
CHUNK = 2**13
#: the data's memory is measured at this share of the size, too
SMALLER = 0.1
#: padded tokens of a sub-batch whose loading is timed, and how many of these
LOADED_TOKENS, LOADED = 8192, 100
#: what is done until a line of the log says so: imports, reading the suite, building the model, opening the data (and
#: computing their digests), making the optimizer (PyTorch's first imports its compiler) and planning the epoch, and the
#: first update
STAGES = {
    "import": r"fairseq_cli\.train \| \{",
    "set up": r"\| suite|; suite: ",
    "model": r"num\. shared model params",
    "open": r"train: \d+ examples of",
    "optimizer, plan": r"begin training epoch|Start iterating over samples",
    "update": r"\| train_inner \|",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="data-bin folder whose tokenizer and dictionary are used")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keeps the data (5 GB); default: none does")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the published sizes (default: %(default)s)")
    parser.add_argument("--arch", default="muppet_bart_base", help="default: %(default)s")
    parser.add_argument("--max-positions", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=2560, help="default: five choices of the longest rows")
    parser.add_argument("--starts", type=int, default=3, help="of the command (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="before each start, drop the data from the page cache")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each stage, medians over the starts, and the bytes of memory.

    Raises:
        MuppetError: ``fairseq-train`` ends before its first update.
    """
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scales = {"all": args.scale, "smaller": args.scale * SMALLER}
        bins = {which: write_corpus(folder / f"{scale:g}", args.data, scale) for which, scale in scales.items()}
        starts = []
        for _ in range(args.starts):
            if args.cold:
                _drop(bins["all"])
            starts.append(_start(bins["all"], args))
        memory = {which: _in_a_process(_opened, path, args.max_positions) for which, path in bins.items()}
        loading = _in_a_process(_loaded, bins["all"], args.max_positions)
    more = {key: memory["all"][key] - memory["smaller"][key] for key in ("anonymous", "examples")}
    seconds = spread([sum(start["seconds"].values()) for start in starts])
    an_example = more["anonymous"] / more["examples"]
    what = f"from the command to the first update, {memory['all']['examples']:,} examples, {args.arch}, s"
    return {
        "arch": args.arch,
        "page cache": "cold" if args.cold else "warm",
        "cpus": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "stages": {stage: spread([start["seconds"][stage] for start in starts]) for stage in STAGES},
        "process": {key: spread([start["process"][key] for start in starts]) for key in starts[0]["process"]},
        "opened data": memory,
        "loading": loading,
        "targets": [
            Target(what, seconds["median"], 30.0, at_least=False).to_dict(),
            Target("memory of a worker for each example of opened data, bytes", an_example, 1.0, False).to_dict(),
        ],
    }


# -- the data -------------------------------------------------------------------------------------------------


@dataclass
class _Drawn(Split):
    """A split whose tokens are drawn at random; the writer gets its streams as it would get encoded ones.

    Attributes:
        lengths: of its texts.
        classes: of a classification.
        tokenizer: its dictionary says which tokens there are.
    """

    lengths: DatasetLengths | None = None
    classes: int = 0
    tokenizer: Tokenizer | None = None

    def map(self, function: Any, workers: Any = None) -> Iterator[tuple[int, dict[str, Packed]]]:
        rng = np.random.default_rng(len(self.lengths.first))
        begin_second = 0
        for begin in range(0, len(self.lengths.first), CHUNK):
            part = slice(begin, begin + CHUNK)
            count, counts = len(self.lengths.first[part]), None
            for parts in (self.lengths.choices, self.lengths.new_passage):
                counts = counts if parts is None else int(parts[part].sum())
            end_second = begin_second + (count if counts is None else counts)
            second = None if self.lengths.second is None else self.lengths.second[begin_second:end_second]
            yield count, self._streams(part, second, rng)
            begin_second = end_second

    def _streams(self, part: slice, second: np.ndarray | None, rng: np.random.Generator) -> dict[str, Packed]:
        lengths, family = self.lengths, self.lengths.family
        names = ("source", "target") if family == "summarization" else ("input0", "input1")
        sizes = [lengths.first[part]] if second is None else [lengths.first[part], second]
        streams = {name: self._texts(own, rng) for name, own in zip(names, sizes, strict=False)}
        count = len(sizes[0])
        if family == "classification":
            streams["label"] = _single(rng.integers(self.classes, size=count))
        if family == "commonsense":
            streams["num_choices"] = _single(lengths.choices[part])
            streams["answer"] = _single(rng.integers(lengths.choices[part]))
        if family == "mrc":
            # of each passage the first token; training does not read offsets
            streams["answers"] = np.zeros(2 * count, dtype=np.int32), np.full(count, 2)
            streams["offsets"] = np.zeros(2 * int((second - 1).sum()), dtype=np.int32), 2 * (second - 1)
            streams["new_passage"] = _single(lengths.new_passage[part])
        return streams

    def _texts(self, sizes: np.ndarray, rng: np.random.Generator) -> Packed:
        dictionary = self.tokenizer.dictionary
        flat = rng.integers(dictionary.nspecial, len(dictionary), int(sizes.sum()), dtype=np.uint16)
        flat[np.cumsum(sizes) - 1] = dictionary.eos()
        return flat, sizes


def _single(values: np.ndarray) -> Packed:
    return values, np.ones(len(values), dtype=np.int32)


def write_corpus(out: Path, data: Path, scale: float) -> Path:
    """Write the datasets of :mod:`benchmarks.corpus` into a data-bin folder, but those that are there, and return it.

    They have training examples alone. Tokenizer and dictionary are those of the data-bin folder ``data``.
    """
    tokenizer = Tokenizer.load(data / "tokenizer")
    if not out.is_dir():
        out.mkdir(parents=True)
        tokenizer.save(out / "tokenizer")
        shutil.copyfile(data / "dict.txt", out / "dict.txt")
    for lengths in tqdm(corpus(scale), "writing", len(FORMS), unit=" datasets", disable=None, leave=False):
        if not (out / lengths.name).is_dir():
            entry = CATALOG[lengths.name]
            split = _Drawn((), lengths=lengths, classes=len(entry.labels), tokenizer=tokenizer)
            binarize(entry, {"train": split}, tokenizer, out)
    return out


def _drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- what is measured -----------------------------------------------------------------------------------------


def _start(data: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Start ``fairseq-train``, until its first update: the seconds of each stage, those of CPU, the MB of memory."""
    with tempfile.TemporaryDirectory() as save_dir:
        command = _command(data, Path(save_dir), args)
        begin, seconds, stages = time.perf_counter(), {}, iter(STAGES)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            stage, last = next(stages), ""
            for line in process.stdout:
                if not re.search(STAGES[stage], line):
                    last = line.strip() or last
                    continue
                now = time.perf_counter()
                seconds[stage], begin = now - begin, now
                if len(seconds) == len(STAGES):
                    return {"seconds": seconds, "process": _cpu_seconds(process.pid) | memory(process.pid)}
                stage = next(stages)
            raise MuppetError(f"fairseq-train has ended before {stage!r} was done: {last}")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _command(data: Path, save_dir: Path, args: argparse.Namespace) -> list[str]:
    return [
        *(str(Path(sysconfig.get_path("scripts")) / "fairseq-train"), str(data)),
        *("--user-dir", str(Path(muppet_fairseq.__file__).parent), "--task", "muppet", "--suite", ",".join(FORMS)),
        *("--criterion", "muppet", "--arch", args.arch, "--max-positions", str(args.max_positions)),
        *("--max-tokens", str(args.max_tokens), "--optimizer", "adam", "--lr", "1e-5", "--max-update", "100", "--cpu"),
        *("--disable-validation", "--no-save", "--save-dir", str(save_dir)),
        *("--log-format", "json", "--log-interval", "1"),
    ]


def _cpu_seconds(pid: int) -> dict[str, float]:
    """What a process has computed, all its threads together: on a busy machine it takes longer than alone."""
    # user and system time are the twelfth and the next field behind the name
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {"CPU seconds": sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")}


def _in_a_process(function: Any, *arguments: Any) -> Any:
    """What a function returns, called in a new process, which holds nothing else yet."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def _opened(data: Path, max_positions: int) -> dict[str, float]:
    """How many examples and bytes of files there are, the bytes of memory that they take once opened, and seconds."""
    give_back_memory()
    before, begin = memory("self"), time.perf_counter()
    task = open_task(data, ",".join(FORMS), max_positions)
    seconds = time.perf_counter() - begin
    # training does so after planning, which comes next
    give_back_memory()
    kept = {name: round(1e6 * (now - before[name])) for name, now in memory("self").items()}
    files = sum(file["bytes"] for name in FORMS for file in read_dataset_json(data / name)["files"].values())
    examples = sum(dataset.num_examples for dataset in task.datasets["train"].datasets)
    return kept | {"examples": examples, "on disk": files, "seconds": round(seconds, 2)}


def _loaded(data: Path, max_positions: int) -> dict[str, Any]:
    """How fast one process reads and collates sub-batches of as many tokens as a GPU is given at once."""
    dataset = open_task(data, ",".join(FORMS), max_positions).datasets["train"]
    schedule = BatchSchedule(dataset.sizes_by_dataset(), SubBatchLimits(LOADED_TOKENS))
    seconds, tokens = [], 0
    for sub_batch in schedule.order()[: LOADED + 2].tolist():
        begin = time.perf_counter()
        sample = collate(dataset, schedule[sub_batch])
        seconds.append(time.perf_counter() - begin)
        tokens += sample["ntokens"]
    seconds = seconds[2:]
    return {"padded tokens": LOADED_TOKENS, "seconds": spread(seconds), "tokens/s": round(tokens / sum(seconds))}
