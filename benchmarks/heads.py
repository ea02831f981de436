"""What the heads of a whole suite cost: an update with those of many datasets beside one with a single head."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from benchmarks import overhead
from benchmarks.measure import Target, compared, in_turns
from benchmarks.trainers import Side, words_of_muppet
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig
from muppet_fairseq.trainer import MuppetTrainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overhead.add_arguments(parser)
    parser.add_argument("--heads", type=int, default=46, help="each of a dataset of its own (default: %(default)s)")


def sides(args: argparse.Namespace) -> dict[str, Side]:
    """A training with one dataset, and one with that many of its kind. Raises MuppetError."""

    def setup_many(cfg: MuppetTaskConfig) -> MuppetTask:
        task = MuppetTask.setup_task(cfg)
        (spec,) = task.specs
        specs = [replace(spec, name=f"{spec.name}_{number}") for number in range(args.heads)]
        return MuppetTask(cfg, task.dictionary, task.dictionary_sha256, specs)

    words = words_of_muppet(args, args.data, args.dataset)
    return {"one": Side(words, MuppetTrainer), "many": Side(words, MuppetTrainer, setup_many)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of an update of both, each update of one sub-batch, whose dataset changes every time."""
    both = sides(args)
    one, many = both.values()
    samples = [one.collate(examples) for examples in overhead.sub_batches(one, args)]
    kinds = {
        "one": lambda number: one.update([samples[number % len(samples)]]),
        "many": lambda number: many.update([samples[number % len(samples)] | {"dataset": number % args.heads}]),
    }
    seconds = in_turns(kinds, args.updates, device=str(one.trainer.device))
    figures = compared(seconds, "many", "one")
    what = f"update with {args.heads} heads / with one, {args.size}"
    return {
        "size": args.size,
        "device": str(one.trainer.device),
        "threads": torch.get_num_threads(),
        "parameters": {kind: sum(p.numel() for p in side.model.parameters()) for kind, side in both.items()},
        "figures": figures,
        "targets": [Target(what, figures["ratio"]["median"], 1.03, at_least=False).to_dict()],
    }
