"""How evenly the workers of an update are loaded: mean over the largest of their costs, on the 46 datasets."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.corpus import corpus, laid_out
from benchmarks.measure import Target
from muppet_fairseq.data.schedule import BatchSchedule, SubBatchLimits, deal

#: ``--update-freq`` to what is to be reached
BOUNDS = {1: 0.95, 4: 0.98}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--max-positions", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[4400, 8192, 16384], help="of a sub-batch, each")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the datasets' published sizes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return mean and 5% quantile over the updates; a worker's cost is its padded tokens x rows.

    ``sub_batches`` x ``largest`` is what an epoch takes where an update waits for its costliest sub-batch.
    """
    datasets = [laid_out(dataset, args.max_positions).sizes for dataset in corpus(args.scale)]
    figures: dict[str, Any] = {}
    for limit in args.max_tokens:
        figures[str(limit)] = {}
        for update_freq in BOUNDS:
            size = args.workers * update_freq
            schedule = BatchSchedule(datasets, SubBatchLimits(limit), sub_batches_per_update=size)
            even = evenness(schedule, args.workers, update_freq)
            figures[str(limit)][f"update-freq {update_freq}"] = {
                "mean": round(float(even.mean()), 5),
                "5% quantile": round(float(np.quantile(even, 0.05)), 5),
                "updates": len(even),
            }
        figures[str(limit)] |= {"sub_batches": len(schedule), "largest": int(schedule.cost.max())}
    targets = []
    for update_freq, bound in BOUNDS.items():
        worst = min(figure[f"update-freq {update_freq}"]["mean"] for figure in figures.values())
        what = f"mean / largest cost of {args.workers} workers, --update-freq {update_freq}"
        targets.append(Target(what, worst, bound, at_least=True).to_dict())
    return {"figures": figures, "targets": targets}


def evenness(schedule: BatchSchedule, workers: int, update_freq: int) -> np.ndarray:
    """The workers' mean cost divided by the largest one, ``[updates]``; of the last update, too, which is not full."""
    dealt = deal(schedule.updates, schedule.cost, workers, update_freq)
    cost = np.where(dealt >= 0, schedule.cost[dealt], 0).sum(axis=2)
    return cost.mean(axis=1) / cost.max(axis=1)
