"""What an R3F step costs beside a plain one: forward, backward, clipping and Adam, in turns on the same batches."""

from __future__ import annotations

import argparse
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import nn
from tqdm import tqdm

from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion
from muppet_fairseq.data.schedule import BatchSchedule, SubBatchLimits
from muppet_fairseq.models import bart, roberta  # noqa: F401 - registers the models
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="data-bin folder")
    parser.add_argument("--suite", required=True, help="suite file, or names with commas between")
    parser.add_argument("--arch", default="muppet_bart_small", help="default: %(default)s")
    parser.add_argument("--max-positions", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=2048, help="padded tokens x rows of a sub-batch")
    parser.add_argument("--steps", type=int, default=12, help="pairs of steps a dataset, after 2 to warm up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each dataset and for all, the ratio of the two kinds' median times and those times (seconds)."""
    run_options = {"seed": 1, "update_freq": [1], "train_subset": "train", "save_dir": "no-run", "reuse_heads": True}
    task = MuppetTask.setup_task(
        MuppetTaskConfig(data=str(args.data), suite=args.suite, max_positions=args.max_positions, **run_options)
    )
    task.load_dataset("train")
    dataset = task.datasets["train"]
    options = Namespace(arch=args.arch)
    ARCH_CONFIG_REGISTRY[args.arch](options)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(options, task).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    criterions = {
        "plain": MuppetCriterion(task, "log", 0.1),
        "r3f": MuppetR3FCriterion(task, "log", 0.1, r3f_lambda=1.0, eps=1e-5, noise_type="uniform"),
    }
    schedule = BatchSchedule(dataset.sizes_by_dataset(), SubBatchLimits(args.max_tokens, None))
    of_dataset = {
        spec.name: [schedule[b] for b in np.flatnonzero(schedule.dataset == number)]
        for number, spec in enumerate(task.specs)
    }
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tqdm(total=len(of_dataset) * (args.steps + 2), unit=" pairs", disable=None) as bar:
        for name, sub_batches in of_dataset.items():
            for step in range(args.steps + 2):
                sample = dataset.collater([dataset[int(i)] for i in sub_batches[step % len(sub_batches)]])
                if args.device != "cpu":
                    sample = utils.move_to_cuda(sample)
                # the one that goes first finds colder caches: take turns
                for kind in ("plain", "r3f") if step % 2 else ("r3f", "plain"):
                    taken = _step(model, criterions[kind], optimizer, sample)
                    if step >= 2:
                        seconds[name][kind].append(taken)
                bar.update()
    figures = {name: _figures(of_kind) for name, of_kind in seconds.items()}
    everything = {kind: round(sum(f[kind] for f in figures.values()), 4) for kind in ("plain", "r3f")}
    figures["all"] = everything | {"ratio": round(everything["r3f"] / everything["plain"], 3)}
    threads = torch.get_num_threads()
    return {"arch": args.arch, "device": args.device, "threads": threads, "steps": args.steps, "figures": figures}


def _step(model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, sample: dict[str, Any]) -> float:
    _wait(model)
    started = time.perf_counter()
    optimizer.zero_grad()
    loss, _, _ = criterion(model, sample)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    _wait(model)
    return time.perf_counter() - started


def _wait(model: nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def _figures(of_kind: dict[str, list[float]]) -> dict[str, float]:
    medians = {kind: float(np.median(values)) for kind, values in of_kind.items()}
    return {kind: round(value, 4) for kind, value in medians.items()} | {
        "ratio": round(medians["r3f"] / medians["plain"], 3)
    }
