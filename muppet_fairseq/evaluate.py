"""Evaluate a checkpoint on datasets by their official metrics, and write its predictions."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from muppet_fairseq import generation
from muppet_fairseq.data.binarized import BinarizedSplit, open_tokenizer
from muppet_fairseq.data.tokenizer import dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.files import unwritable, write_text
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.provenance import versions
from muppet_fairseq.spec import DatasetSpec, read_dataset_json
from muppet_fairseq.suite import Suite
from muppet_fairseq.trained import TrainedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint file, or folder made by 'muppet release'")
    parser.add_argument("data", type=Path, help="data-bin folder")
    parser.add_argument(
        "--datasets", help="names with commas between, or a suite file; default: those the checkpoint was trained on"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="what a run with --tune has trained (prompts, biases or adapters); the checkpoint is then its backbone",
    )
    parser.add_argument("--split", default="valid", help="a split that is not trained on (default: valid)")
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="write DIR/<dataset>.<split>.jsonl")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--example-scores",
        action="store_true",
        help="with --json: each example's contribution to its dataset's metric, for paired tests of two models, and "
        "which examples are about the same thing",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="padded tokens x rows of a batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    generation.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print; the dataset's own metric comes first."""
    if args.example_scores and not args.json:
        raise MuppetError("--example-scores does not fit into the table; give --json, too")
    results = evaluate(args)
    if args.json:
        print(json.dumps(results))
        return
    rows = []
    for result in results["results"]:
        metrics = "  ".join(f"{name} {100 * value:.2f}" for name, value in result["metrics"].items())
        rows.append(f"{result['dataset']:<28}{result['family']:<16}{result['examples']:>8}  {metrics}")
    print(f"{'dataset':<28}{'family':<16}{'examples':>8}  {args.split}, x 100")
    print("\n".join(rows))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate ``args.checkpoint``; see :func:`add_arguments`.

    Returns:
        ``results``, for each dataset its ``metrics`` (0 to 1; correlations from -1) and, if asked for, its
        ``example_scores`` (:meth:`Family.example_scores`, in the order of the predictions) and, where some of them
        are about the same thing, ``example_groups`` (:class:`preprocess.entry.Entry`), and what made them.

    Raises:
        MuppetError: the checkpoint, the data or an option cannot be used.
    """
    checkpoint = args.checkpoint / "model.pt" if args.checkpoint.is_dir() else args.checkpoint
    dictionary = args.data / "dict.txt"
    if not dictionary.is_file():
        raise MuppetError(f"{args.data} is no data-bin folder: it has no dict.txt; name one that 'preprocess' made")
    trained = TrainedModel.load(checkpoint, dictionary, args.prompts)
    trained.model.to(_device(args.device))
    specs = _specs(trained, args)
    options = GenerationOptions.of_arguments(args)
    generator = None
    if any(FAMILIES[spec.family].generates for spec in specs):
        tokenizer = open_tokenizer(args.data, [spec.name for spec in specs])
        generator = Generator(options, trained.task.dictionary, tokenizer.decode)
    # complain before the first dataset has taken its time
    for spec in specs:
        trained.head_of(spec)
        trained.prompt_of(spec)
    if args.predictions is not None:
        try:
            args.predictions.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(args.predictions, error) from None
    results = []
    for spec in specs:
        family = FAMILIES[spec.family]
        split = BinarizedSplit(args.data, spec, args.split, dictionary_sha256(dictionary))
        dataset = split.laid_out(trained.task.layout, training=False)
        examples = _examples(split, len(dataset))
        with tqdm(desc=spec.name, total=len(dataset), unit=" examples", disable=None, leave=False) as bar:
            predictions = trained.predict(
                spec, dataset, max_tokens=args.max_tokens, generator=generator, progress=bar.update
            )
        if args.predictions is not None:
            both = zip(predictions, examples, strict=True)
            lines = ({"id": example["id"], **prediction, "gold": example[family.gold]} for prediction, example in both)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(args.predictions / f"{spec.name}.{args.split}.jsonl", text)
        result = {
            "dataset": spec.name,
            "family": spec.family,
            "examples": len(examples),
            "metrics": _metrics(predictions, examples, spec, split),
        }
        if args.example_scores:
            result["example_scores"] = family.example_scores(predictions, examples, spec)
            groups = _groups(examples)
            if len(set(groups)) < len(groups):
                result["example_groups"] = groups
        results.append(result)
    return {
        "checkpoint": str(args.checkpoint),
        "prompts": None if args.prompts is None else str(args.prompts),
        "data": str(args.data),
        "split": args.split,
        "generation": asdict(options) if generator else None,
        "results": results,
        "versions": versions(),
    }


def _examples(split: BinarizedSplit, count: int) -> list[dict[str, Any]]:
    """The raw examples of a split. Raises MuppetError where they are not those of its ``count`` rows."""
    split.require_equal_lengths(examples=range(count), raw=split.ints("raw"))
    return [split.raw(index) for index in range(count)]


def _groups(examples: list[dict[str, Any]]) -> list[int]:
    """The number of each example's group, in the order of their first examples."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(example.get("group", example["id"]), len(numbers)) for example in examples]


def _metrics(
    predictions: list[dict[str, Any]], examples: list[dict[str, Any]], spec: DatasetSpec, split: BinarizedSplit
) -> dict[str, float]:
    try:
        return FAMILIES[spec.family].evaluate(predictions, examples, spec)
    except KeyError as error:
        if all(error.args[0] in example for example in examples):
            raise
        raise MuppetError(
            f"{split.folder}: its examples have no {error.args[0]!r}, which the metric {spec.metric} needs; "
            "name another metric in a suite file, or prepare the dataset with it"
        ) from None


def _device(name: str) -> torch.device:
    try:
        value = torch.zeros(1, device=name)
        value.item()  # the device "meta" has none
        return value.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise MuppetError(f"the device {name!r} cannot be used ({reason}); give cpu or cuda") from None


def _specs(trained: TrainedModel, args: argparse.Namespace) -> list[DatasetSpec]:
    """The datasets to evaluate, with the checkpoint's classes and heads; unless some are named, its metrics, too."""
    own = {spec.name: spec for spec in trained.task.specs}
    names = Suite.load(args.datasets if args.datasets is not None else ",".join(own))
    specs = names.specs(args.data)
    for spec in specs:
        trained_on = own.get(spec.name, spec)
        if trained_on.labels != spec.labels:
            raise MuppetError(
                f"{args.data / spec.name} has the classes {', '.join(spec.labels)}, the checkpoint "
                f"{', '.join(trained_on.labels)}: evaluate on the data that it was trained with"
            )
        splits = read_dataset_json(args.data / spec.name)["splits"]
        if args.split == "train" and args.split in splits:
            raise MuppetError(
                "the split 'train' is kept without its texts, so it cannot be judged; name another one with --split"
            )
    if args.datasets is None:
        specs = [replace(spec, metric=own[spec.name].metric) for spec in specs]
    return [replace(spec, head=own[spec.name].head) if spec.name in own else spec for spec in specs]
