"""Multiple choice, all choices in one forward, beside stock fairseq's sentence_ranking, on the same examples."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data.indexed_dataset import make_builder
from fairseq.trainer import Trainer

from benchmarks.measure import Target, in_turns, ratio, spread
from benchmarks.trainers import Side, add_model_arguments, copy_weights, words_of_muppet, words_of_stock
from benchmarks.training import sub_batches_of
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.commonsense import CommonsenseDataset
from muppet_fairseq.trainer import MuppetTrainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    names = "mini_siqa,mini_openbookqa,mini_commonsense_qa"
    parser.add_argument("--datasets", default=names, help="with commas between (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=8, help="of a round: whole sub-batches of ours")
    parser.add_argument("--rounds", type=int, default=3, help="through these examples, after one to warm up")


class Pair:
    """Both trainings on one dataset.

    Stock fairseq reads a fixed number of choices, so that examples with another number are left out; ours is given the
    same ones. It forwards each choice alone, and keeps the graphs of all: its ``--max-tokens``, of one choice, is ours
    divided by their number, which makes updates of the same size.

    Attributes:
        batches: examples (their places in our data) of each update: ``muppet``; ``fairseq`` as it groups the same ones,
            at random (with ``--required-batch-size-multiple 1``: its default of 8 would leave many half full); and
            ``same batches``.
    """

    def __init__(self, args: argparse.Namespace, name: str, folder: Path) -> None:
        self.ours = Side(words_of_muppet(args, args.data, name), MuppetTrainer)
        (dataset,) = self.ours.dataset.datasets
        if not isinstance(dataset, CommonsenseDataset):
            raise MuppetError(f"{name} has no choices; name datasets of the family commonsense")
        choices = int(np.bincount(dataset.rows).argmax())
        self.examples = np.flatnonzero((dataset.rows == choices) & (dataset.lengths < args.max_positions))
        write_for_ranking(dataset, self.examples, args.data / name, folder)
        words = words_of_stock(args, folder, "sentence_ranking", choices)
        self.stock = Side([*words, "--max-tokens", str(args.max_tokens // choices)], Trainer)
        head = self.ours.trainer.task.heads[0]
        copy_weights(self.stock.model, self.ours.model, str(head))
        mine = self._sub_batches(args, name)
        theirs = self._batches_of_stock(np.concatenate(mine), args.max_tokens // choices)
        self.batches = {"muppet": mine, "fairseq": theirs, "same batches": mine}

    def _sub_batches(self, args: argparse.Namespace, name: str) -> list[np.ndarray]:
        usable = set(self.examples.tolist())
        found = sub_batches_of(self.ours.trainer.task, args.max_tokens)[name]
        whole = [examples for examples in found if usable.issuperset(examples.tolist())]
        if len(whole) < args.updates:
            raise MuppetError(f"{name} has {len(whole)} sub-batches; lower --updates or --max-tokens")
        # of all lengths
        return [whole[i] for i in np.linspace(0, len(whole) - 1, args.updates).round().astype(int)]

    def _batches_of_stock(self, examples: np.ndarray, max_tokens: int) -> list[np.ndarray]:
        order = np.random.default_rng(1).permutation(np.searchsorted(self.examples, examples))
        found = self.stock.dataset.batch_by_size(order, max_tokens=max_tokens, required_batch_size_multiple=1)
        return [self.examples[batch] for batch in found]

    def collate(self, kind: str) -> tuple[Side, list[dict[str, Any]]]:
        """Who trains, and on what."""
        if kind == "muppet":
            return self.ours, [self.ours.collate(batch) for batch in self.batches[kind]]
        batches = (np.searchsorted(self.examples, batch) for batch in self.batches[kind])
        return self.stock, [self.stock.collate(batch) for batch in batches]


def write_for_ranking(dataset: CommonsenseDataset, examples: np.ndarray, source: Path, folder: Path) -> None:
    """Write ``examples`` as ``sentence_ranking`` reads them: the question as ``input0``, choices as ``input1`` on."""
    choices = int(dataset.rows[examples[0]])
    columns = {"input0": [dataset.context[i] for i in examples]}
    first = [dataset.first_choice.before(int(i)) for i in examples]
    for number in range(choices):
        columns[f"input{number + 1}"] = [dataset.choices[begin + number] for begin in first]
    for name, column in columns.items():
        (folder / name).mkdir(parents=True)
        builder = make_builder(str(folder / name / "train.bin"), impl="mmap", vocab_size=dataset.layout.vocabulary)
        for tokens in column:
            builder.add_item(torch.from_numpy(tokens.copy()))
        builder.finalize(str(folder / name / "train.idx"))
    shutil.copyfile(source / "input0" / "dict.txt", folder / "input0" / "dict.txt")
    (folder / "label").mkdir()
    (folder / "label" / "train.label").write_text("".join(f"{dataset.answer[i]}\n" for i in examples))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each dataset and for all, the examples a second of three trainings, and ratios of them."""
    figures, seconds_of_all = {}, []
    for name in args.datasets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            pair = Pair(args, name, Path(folder))
            seconds = _measure(pair, args.rounds)
        count = sum(map(len, pair.batches["muppet"]))
        figures[name] = {
            "choices": int(pair.stock.trainer.task.args.num_classes),
            "examples": count,
            "updates": {kind: len(batches) for kind, batches in pair.batches.items()},
            "examples a second": {kind: spread([count / s for s in values]) for kind, values in seconds.items()},
            "ratio": ratio(seconds, "fairseq", "muppet"),
            "ratio on the same batches": ratio(seconds, "same batches", "muppet"),
        }
        seconds_of_all.append(seconds)
    rounds = {kind: [sum(r) for r in zip(*(s[kind] for s in seconds_of_all), strict=True)] for kind in seconds}
    gain = ratio(rounds, "fairseq", "muppet")["median"]
    return {
        "size": args.size,
        "device": str(pair.ours.trainer.device),
        "threads": torch.get_num_threads(),
        "figures": figures | {"all": {"ratio": gain, "same": ratio(rounds, "same batches", "muppet")["median"]}},
        "targets": [Target(f"examples/s / sentence_ranking's, {args.size}", gain, 1.3, at_least=True).to_dict()],
    }


def _measure(pair: Pair, rounds: int) -> dict[str, list[float]]:
    def goes_through(kind: str) -> Any:
        side, samples = pair.collate(kind)
        return lambda number: [side.update([sample]) for sample in samples]

    kinds = {kind: goes_through(kind) for kind in pair.batches}
    return in_turns(kinds, rounds, warm_up=1, device=str(pair.ours.trainer.device))
