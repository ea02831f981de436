"""Print what an epoch of a suite will look like: sub-batches, updates, datasets per update, balance."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from muppet_fairseq.data.iterator import sub_batches_per_update
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.schedule import SAMPLINGS, STRATEGIES, BatchSchedule, SubBatchLimits, deal
from muppet_fairseq.data.tokenizer import dictionary_sha256, load_dictionary
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Layout
from muppet_fairseq.suite import Suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="data-bin folder")
    parser.add_argument("--suite", required=True, help="suite file (.yaml), or names with commas between")
    parser.add_argument("--workers", type=int, default=1, help="workers (GPUs)")
    parser.add_argument("--update-freq", type=int, default=1, help="sub-batches of a worker in an update")
    parser.add_argument("--sub-batches", type=int, help="of an update; default: workers x update-freq")
    parser.add_argument("--max-tokens", type=int, help="padded tokens x rows of a sub-batch")
    parser.add_argument("--batch-size", type=int, help="examples of a sub-batch")
    parser.add_argument("--max-positions", type=int, default=512)
    parser.add_argument("--window-overlap", type=int, default=128)
    parser.add_argument("--batching", choices=STRATEGIES, default=STRATEGIES[0])
    parser.add_argument("--sampling", choices=SAMPLINGS, default=SAMPLINGS[0])
    parser.add_argument("--sampling-temperature", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    described = describe(args)
    print(json.dumps(described) if args.json else _table(described))


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Plan epoch 1 and return its figures; costs are padded tokens x rows.

    Raises MuppetError for options and data that ``fairseq-train`` could not use either.
    """
    for option, lowest in (("workers", 1), ("update_freq", 1), ("seed", 0)):
        value = getattr(args, option)
        if value < lowest:
            raise MuppetError(f"--{option.replace('_', '-')} is {value}; give at least {lowest}")
    if args.max_tokens is None and args.batch_size is None:
        raise MuppetError("nothing says how large a sub-batch may be; give --max-tokens or --batch-size")
    dict_path = Path(args.data) / "dict.txt"
    specs = Suite.load(args.suite).specs(args.data)
    dictionary = load_dictionary(dict_path)
    layout = Layout(
        dictionary.bos(),
        dictionary.pad(),
        dictionary.eos(),
        len(dictionary),
        args.max_positions,
        args.window_overlap,
    )
    data = MultitaskDataset.open(args.data, specs, "train", layout, dictionary_sha256(dict_path), training=True)
    begin = time.perf_counter()
    schedule = BatchSchedule(
        data.sizes_by_dataset(),
        SubBatchLimits(args.max_tokens, args.batch_size),
        strategy=args.batching,
        sampling=args.sampling,
        temperature=args.sampling_temperature,
        sub_batches_per_update=sub_batches_per_update(args.sub_batches, args.workers, args.update_freq),
        seed=args.seed,
    )
    dealt = deal(schedule.updates, schedule.cost, args.workers, args.update_freq)
    seconds = time.perf_counter() - begin
    return {
        **figures(schedule, dealt),
        "share": {spec.name: float(share) for spec, share in zip(specs, _shares(schedule, len(specs)), strict=True)},
        "planning_seconds": round(seconds, 3),
    }


def _shares(schedule: BatchSchedule, datasets: int) -> np.ndarray:
    return np.bincount(schedule.dataset, minlength=datasets) / len(schedule)


def figures(schedule: BatchSchedule, dealt: np.ndarray) -> dict[str, Any]:
    """Figures over the full updates (over all, where none is full); ``dealt`` is ``[U, workers, rounds]``."""
    full = (schedule.updates >= 0).all(axis=1)
    full |= ~full.any()
    updates, dealt = schedule.updates[full], dealt[full]
    cost = np.where(dealt >= 0, schedule.cost[dealt], 0).sum(axis=2)
    distinct = [len(np.unique(schedule.dataset[update[update >= 0]])) for update in updates]
    return {
        "examples": len(schedule.examples),
        "sub_batches": len(schedule),
        "updates": len(schedule.updates),
        "distinct_datasets_mean": float(np.mean(distinct)),
        "distinct_datasets_min": int(np.min(distinct)),
        "worker_cost_mean_over_max": float((cost.mean(axis=1) / cost.max(axis=1)).mean()),
    }


def _table(described: dict[str, Any]) -> str:
    lines = [f"{key.replace('_', ' '):28} {value:,.6g}" for key, value in described.items() if key != "share"]
    shares = sorted(described["share"].items(), key=lambda item: -item[1])
    return "\n".join([*lines, "", "share of the sub-batches", *(f"  {n:26} {s:7.2%}" for n, s in shares)])
