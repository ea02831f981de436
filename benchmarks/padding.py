"""How much of what is computed in an epoch is padding: of the 46 pre-finetuning datasets, or of a data-bin folder."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import LaidOut, corpus, laid_out
from benchmarks.measure import Target
from benchmarks.training import collate, open_task
from muppet_fairseq.data.schedule import BatchSchedule, SubBatchLimits
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.tasks.muppet import MuppetTask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, nargs="?", help="data-bin folder; without one: drawn lengths of 46 datasets")
    parser.add_argument("--suite", help="of the data-bin folder: suite file, or names with commas between")
    parser.add_argument("--max-positions", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[4400, 8192, 16384], help="of a sub-batch, each")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 46 datasets' published sizes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the share of padding, of the encoder's and the decoder's tokens together, by family and in all.

    Raises:
        MuppetError: a data-bin folder cannot be used, or its suite is missing.
    """
    if args.data is None:
        data = [(dataset.family, laid_out(dataset, args.max_positions)) for dataset in corpus(args.scale)]
        counted = {limit: of_lengths(data, limit) for limit in args.max_tokens}
    elif args.suite is None:
        raise MuppetError("--suite is missing; name the datasets of the data-bin folder to count")
    else:
        task = open_task(args.data, args.suite, args.max_positions)
        counted = {limit: of_samples(task, limit) for limit in args.max_tokens}
    figures = {str(limit): _shares(tokens) for limit, tokens in counted.items()}
    worst = max(share["all"] for share in figures.values())
    limits = ", ".join(map(str, args.max_tokens))
    target = Target(f"share of padding, worst of --max-tokens {limits}", worst, 0.05, at_least=False)
    return {"figures": figures, "targets": [target.to_dict()]}


def of_lengths(data: Sequence[tuple[str, LaidOut]], max_tokens: int) -> dict[str, np.ndarray]:
    """For each family: tokens that are computed, and those of them that are no padding, int64 ``[2]``."""
    schedule = BatchSchedule([dataset.sizes for _, dataset in data], SubBatchLimits(max_tokens))
    counted: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, dtype=np.int64))
    offset = 0
    for number, (family, dataset) in enumerate(data):
        sizes = dataset.sizes
        own = np.flatnonzero(schedule.dataset == number)
        begin, end = schedule.starts[own[0]], schedule.starts[own[-1] + 1]
        examples, starts = schedule.examples[begin:end] - offset, schedule.starts[own] - begin
        offset += len(sizes.lengths)
        # lengths also counts what is written; where the encoder has several rows, `encoder` is their sum
        longest = np.maximum.reduceat(np.minimum(sizes.lengths, dataset.encoder)[examples], starts)
        computed = (longest * np.add.reduceat(sizes.rows[examples].astype(np.int64), starts)).sum()
        real = dataset.encoder.sum()
        if sizes.written is not None:
            longest = np.maximum.reduceat(sizes.written[examples], starts).astype(np.int64)
            computed += (longest * np.diff(starts, append=len(examples))).sum()
            real += sizes.written.sum()
        counted[family] += (computed, real)
    return dict(counted)


def of_samples(task: MuppetTask, max_tokens: int) -> dict[str, np.ndarray]:
    """The same, counted in the samples that a model would get."""
    dataset = task.datasets["train"]
    schedule = BatchSchedule(dataset.sizes_by_dataset(), SubBatchLimits(max_tokens))
    counted: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, dtype=np.int64))
    for number in range(len(schedule)):
        sample = collate(dataset, schedule[number])
        tokens = [sample["net_input"]["src_tokens"], sample.get("prev_output_tokens")]
        for rows in tokens:
            if rows is not None:
                counted[task.specs[sample["dataset"]].family] += (rows.numel(), int((rows != task.layout.pad).sum()))
    return dict(counted)


def _shares(counted: Mapping[str, np.ndarray]) -> dict[str, float]:
    tokens = dict(counted) | {"all": sum(counted.values())}
    return {family: round(float(1 - real / computed), 5) for family, (computed, real) in tokens.items()}
