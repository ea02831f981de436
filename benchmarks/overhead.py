"""Updates a second on a classification dataset beside stock fairseq's sentence_prediction, on the same sub-batches."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from fairseq.trainer import Trainer

from benchmarks.measure import Target, compared, in_turns
from benchmarks.trainers import Side, add_model_arguments, copy_weights, words_of_muppet, words_of_stock
from benchmarks.training import sub_batches_of
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.trainer import MuppetTrainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--dataset", default="mini_boolq", help="of the family classification (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=30, help="pairs of updates, after 2 to warm up")


def sides(args: argparse.Namespace) -> tuple[Side, Side]:
    """Stock fairseq and ours with the same weights. Raises MuppetError."""
    ours = Side(words_of_muppet(args, args.data, args.dataset), MuppetTrainer)
    (spec,) = ours.trainer.task.specs
    if spec.family != "classification":
        raise MuppetError(f"{spec.name} is of the family {spec.family}; name a dataset of the family classification")
    folder = args.data / args.dataset
    stock = Side(words_of_stock(args, folder, "sentence_prediction", len(spec.labels)), Trainer)
    copy_weights(stock.model, ours.model, args.dataset)
    return stock, ours


def sub_batches(ours: Side, args: argparse.Namespace) -> list[np.ndarray]:
    """Examples of as many sub-batches as there are updates, at random. Raises MuppetError where there are fewer."""
    (dataset,) = ours.dataset.datasets
    all_of_them = sub_batches_of(ours.trainer.task, args.max_tokens)[args.dataset]
    lengths = dataset.lengths
    # stock fairseq does not cut what is too long
    whole = [examples for examples in all_of_them if lengths[examples].max() < args.max_positions]
    if len(whole) < args.updates:
        raise MuppetError(f"{args.dataset} has {len(whole)} sub-batches; lower --updates or --max-tokens")
    return [whole[i] for i in np.random.default_rng(1).permutation(len(whole))[: args.updates]]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of an update of both, and the ratio of their updates a second."""
    stock, ours = sides(args)
    chosen = sub_batches(ours, args)
    samples = {side: [side.collate(examples) for examples in chosen] for side in (stock, ours)}
    kinds = {
        "fairseq": lambda number: stock.update([samples[stock][number % len(chosen)]]),
        "muppet": lambda number: ours.update([samples[ours][number % len(chosen)]]),
    }
    seconds = in_turns(kinds, args.updates, device=str(ours.trainer.device))
    figures = compared(seconds, "fairseq", "muppet")
    what = f"updates/s / stock fairseq's, {args.size}, {args.dataset}"
    return {
        "size": args.size,
        "device": str(ours.trainer.device),
        "threads": torch.get_num_threads(),
        "tokens": int(np.mean([sample["net_input"]["src_tokens"].numel() for sample in samples[ours]])),
        "figures": figures,
        "targets": [Target(what, figures["ratio"]["median"], 1.0, at_least=True).to_dict()],
    }
