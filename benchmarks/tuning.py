"""What training a part of a model (--tune) costs beside training all of it: time of a step, and peak memory."""

from __future__ import annotations

import argparse
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.measure import Target, in_turns, ratio, spread, turns
from benchmarks.trainers import Side, add_model_arguments, words_of_muppet
from muppet_fairseq import checkpoint_file
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.trainer import MuppetTrainer

#: of each way of tuning, its options and the vectors of a prompt
WAYS = {
    "all": ("", 0),
    "prompts_20": ("--tune prompts --prompt-length 20", 20),
    "prompts_100": ("--tune prompts --prompt-length 100", 100),
    "bitfit": ("--tune bitfit", 0),
    "adapters": ("--tune adapters", 0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128], help="tokens of each row")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each way that are timed, after 2 to warm up")
    parser.add_argument("--updates", type=int, default=4, help="of a process whose memory is measured")
    parser.add_argument("--processes", type=int, default=3, help="of each way, in turns")


def ways(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The arguments of each way's training, on a backbone of random weights that is written to ``folder``."""
    plain, backbone = words_of_muppet(args, folder, memory.NAME), folder / "backbone.pt"
    state = Side(plain, MuppetTrainer).model.state_dict()
    checkpoint_file.write(packed({"_name": "muppet"}, {"_name": "muppet_roberta"}, state), backbone)
    on_it = ["--backbone", str(backbone)]
    return {way: [*plain, *options.split(), *(on_it if options else [])] for way, (options, _) in WAYS.items()}


def timed(args: argparse.Namespace, words: dict[str, list[str]]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The seconds of each way's steps, all on the same sub-batch, and how many parameters each trains."""
    sides = {way: Side(own, MuppetTrainer) for way, own in words.items()}
    samples = {way: [side.collate(range(args.max_tokens // args.length))] for way, side in sides.items()}
    kinds = {way: lambda number, way=way: sides[way].update(samples[way]) for way in sides}
    seconds = in_turns(kinds, args.rounds, device=str(sides["all"].trainer.device))
    trained = {way: sum(p.numel() for p in side.model.parameters() if p.requires_grad) for way, side in sides.items()}
    return seconds, trained


def peaks(args: argparse.Namespace, folder: Path, words: dict[str, list[str]]) -> dict[str, list[int]]:
    """The most bytes that each way's training takes: on the GPU, or in memory beyond what is there once fairseq is
    imported. Raises MuppetError."""
    ours = ["--user-dir", str(memory.ROOT / "muppet_fairseq")]
    more = memory.words_of_process(args, folder)
    found: dict[str, list[int]] = {way: [] for way in words}
    for number in range(args.processes):
        for way in turns(words, number):
            one = memory.train([*ours, *words[way], *more])
            found[way].append(one["gpu"] or one["peak"] - one["imports"])
    return found


def measured(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Target]]:
    """The figures of rows of one length, and what they are to reach. Raises MuppetError."""
    memory.write_data(args, folder)
    words = ways(args, folder)
    used = peaks(args, folder, words)  # first: models of this process take memory, too
    seconds, trained = timed(args, words)
    figures, targets = {}, []
    for way, (_, vectors) in WAYS.items():
        figures[way] = {"trained": trained[way], "seconds": spread(seconds[way]), "peak": spread(used[way])}
        if way == "all":
            continue
        figures[way] |= {"step_ratio": ratio(seconds, way, "all"), "peak_ratio": ratio(used, way, "all")}
        where = f"{way}, {args.size}, rows of {args.length}"
        # what is computed grows with a prompt
        positions = (args.length + vectors) / args.length
        targets += [
            Target(f"step / full fine-tuning's, {where}", figures[way]["step_ratio"]["median"], positions, False),
            Target(f"memory / full fine-tuning's, {where}", figures[way]["peak_ratio"]["median"], positions, False),
        ]
    return figures, targets


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return for each length of rows and each way of tuning the seconds of a step, the most bytes that training takes,
    and both beside full fine-tuning's; a step may take as much longer as its rows are longer with the prompt."""
    figures, targets = {}, []
    for length in args.lengths:
        with tempfile.TemporaryDirectory() as folder:
            own, reached = measured(Namespace(**vars(args) | {"length": length}), Path(folder))
        figures[str(length)] = own
        targets += [target.to_dict() for target in reached]
    return {
        "size": args.size,
        "device": "cpu" if args.cpu or not torch.cuda.is_available() else "cuda",
        "threads": torch.get_num_threads(),
        "tokens": args.max_tokens,
        "figures": figures,
        "targets": targets,
    }
