"""What an R3F step costs beside a plain one: forward, backward, clipping and Adam, in turns on the same batches."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from torch import nn

from benchmarks.measure import Target, compared, in_turns
from benchmarks.training import build_model, collate, open_task, sub_batches_of
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.criterions.muppet_r3f import MuppetR3FCriterion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="data-bin folder")
    parser.add_argument("--suite", required=True, help="suite file, or names with commas between")
    parser.add_argument("--arch", default="muppet_bart_small", help="default: %(default)s")
    parser.add_argument("--max-positions", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=2048, help="padded tokens x rows of a sub-batch")
    parser.add_argument("--steps", type=int, default=12, help="pairs of steps a dataset, after 2 to warm up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each dataset and for all, the two kinds' median seconds and the ratio of them."""
    task = open_task(args.data, args.suite, args.max_positions)
    model = build_model(task, args.arch).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    criterions = {
        "plain": MuppetCriterion(task, "log", 0.1),
        "r3f": MuppetR3FCriterion(task, "log", 0.1, r3f_lambda=1.0, eps=1e-5, noise_type="uniform"),
    }
    figures, totals = {}, dict.fromkeys(criterions, 0.0)
    for name, sub_batches in sub_batches_of(task, args.max_tokens).items():
        samples = [collate(task.datasets["train"], examples) for examples in sub_batches[: args.steps]]
        if args.device != "cpu":
            samples = utils.move_to_cuda(samples)
        kinds = {kind: partial(_step, model, criterions[kind], optimizer, samples, task) for kind in criterions}
        seconds = in_turns(kinds, args.steps, device=args.device)
        figures[name] = compared(seconds, "r3f", "plain")
        for kind in kinds:
            totals[kind] += figures[name][kind]["median"]
    cost = round(totals["r3f"] / totals["plain"], 3)
    return {
        "arch": args.arch,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "figures": figures,
        "targets": [Target(f"R3F step / plain step, {args.arch}", cost, 2.0, at_least=False).to_dict()],
    }


def _step(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, samples: list, task: Any, number: int
) -> None:
    task.begin_update()
    optimizer.zero_grad()
    loss, _, _ = criterion(model, samples[number % len(samples)])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
