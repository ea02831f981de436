"""The most memory of a training process beside stock fairseq's, on sub-batches of the same shape."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Target, spread, turns
from benchmarks.trainers import add_model_arguments, words_of_muppet, words_of_stock
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from preprocess.binarize import binarize
from preprocess.convert import Examples, Split
from preprocess.download import PackageFile
from preprocess.entry import Entry, HeldOut

ROOT = Path(__file__).parents[1]
NAME = "equally_long"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--length", type=int, default=128, help="tokens of each row")
    parser.add_argument("--updates", type=int, default=4, help="of a process")
    parser.add_argument("--processes", type=int, default=5, help="of each training, in turns")


def write_data(args: argparse.Namespace, folder: Path) -> None:
    """A data-bin of one classification dataset, whose examples are all ``length`` tokens long, with the vocabulary of
    ``data``. Raises MuppetError."""
    tokenizer = Tokenizer.load(args.data / "tokenizer")
    tokenizer.save(folder / "tokenizer")
    (folder / "dict.txt").write_bytes((args.data / "dict.txt").read_bytes())
    # one token of any vocabulary; <s> and </s> come to it
    text = " ".join(["the"] * (args.length - 2))
    count = args.updates * (args.max_tokens // args.length)
    rows = [{"id": str(number), "inputs": [text], "label": str(number % 2)} for number in range(count)]
    entry = Entry(
        name=NAME,
        family="classification",
        source=PackageFile("none==1.0", "0" * 64, ("none",)),
        fields={"inputs": ["text"]},
        splits=HeldOut(0.5),
        labels=("0", "1"),
        metric="accuracy",
        licence="none",
        citation="none",
    )
    binarize(entry, {"train": Split([Examples(rows)]), "valid": Split([Examples(rows[:1])])}, tokenizer, folder)


def trains(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The arguments of both trainings: each update is one sub-batch of as many rows as fit."""
    ours = ["--user-dir", str(ROOT / "muppet_fairseq"), *words_of_muppet(args, folder, NAME)]
    stock = words_of_stock(args, folder / NAME, "sentence_prediction", 2)
    more = words_of_process(args, folder)
    return {"fairseq": [*stock, *more], "muppet": [*ours, *more]}


def words_of_process(args: argparse.Namespace, folder: Path) -> list[str]:
    """The arguments of a training that does its updates and no more."""
    more = ["--max-update", str(args.updates), "--disable-validation", "--num-workers", "0", "--log-format", "none"]
    return [*more, "--required-batch-size-multiple", "1", "--save-dir", str(folder / "none")]


def train(words: list[str]) -> dict[str, int]:
    """Train in a fresh process; return what :mod:`benchmarks.peak` prints. Raises MuppetError."""
    program = [sys.executable, "-m", "benchmarks.peak", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise MuppetError(f"{' '.join(program)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of both, what of it is there once fairseq is imported, and the ratio of the peaks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(args, folder)
        words = trains(args, folder)
        found = {kind: [] for kind in words}
        for number in range(args.processes):
            for kind in turns(words, number):
                found[kind].append(train(words[kind]))
    figures: dict[str, Any] = {
        kind: {key: spread([one[key] for one in each]) for key in each[0]} for kind, each in found.items()
    }
    where = "gpu" if all(each[0]["gpu"] for each in found.values()) else "peak"
    figures["ratio"] = spread([a[where] / b[where] for a, b in zip(found["muppet"], found["fairseq"], strict=True)])
    what = f"peak memory / stock fairseq's, {args.size}, {'GPU' if where == 'gpu' else 'resident'}"
    return {
        "size": args.size,
        "figures": figures,
        "targets": [Target(what, figures["ratio"]["median"], 1.02, at_least=False).to_dict()],
    }
