"""Show how similar the prompts of datasets are: the cosine of their mean vectors (SPoT, Vu et al. 2022)."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.prompts.backbone import BACKBONE_KEY
from muppet_fairseq.trained import read_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="of runs with --tune prompts on one backbone"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a heat map, FILE.png or FILE.svg")


def run(args: argparse.Namespace) -> None:
    """Print the similarities of all prompts in ``args.checkpoints``, and draw them if that is wanted."""
    if args.figure and args.figure.suffix not in (".png", ".svg"):
        raise MuppetError(f"--figure {args.figure} says no format: let its name end in .png or .svg")
    prompts = [prompt for path in args.checkpoints for prompt in folded_prompts(path)]
    values, names = similarities(prompts), labels(prompts)
    if args.figure:
        from muppet_fairseq.report.figures import draw_similarities  # which imports scipy.stats

        draw_similarities(names, values.numpy(), args.figure)
    if args.json:
        print(json.dumps({"prompts": names, "similarities": values.tolist()}))
        return
    width = max(map(len, names)) + 5
    print(" " * width + "".join(f"{number:>7}" for number in range(1, len(names) + 1)))
    for number, (name, row) in enumerate(zip(names, values.tolist(), strict=True), 1):
        print(f"{number:>3}  {name}".ljust(width) + "".join(f"{value:>7.2f}" for value in row))


@dataclass(frozen=True, eq=False)
class FoldedPrompt:
    """The prompt ``matrix`` ``[l, d]`` of one dataset, the file that it is from, and the SHA-256 of its backbone."""

    dataset: str
    matrix: Tensor
    file: Path
    backbone: bytes


def folded_prompts(checkpoint: Path) -> list[FoldedPrompt]:
    """The prompts of all datasets in a checkpoint. Raises MuppetError where it has none, or one that is no numbers."""
    state, prompt = read_prompts(checkpoint)
    if BACKBONE_KEY not in state["model"]:
        raise MuppetError(f"{checkpoint} does not say which backbone its prompts are of; copy it again")
    backbone = bytes(state["model"][BACKBONE_KEY].tolist())
    folded = prompt.fold()
    for dataset, matrix in folded.items():
        if not matrix.isfinite().all():
            raise MuppetError(
                f"{checkpoint}: the prompt of {dataset} has values that are no numbers; train it with a lower --lr"
            )
    return [FoldedPrompt(dataset, matrix, checkpoint, backbone) for dataset, matrix in folded.items()]


def similarities(prompts: Sequence[FoldedPrompt]) -> Tensor:
    """Cosine similarities of the prompts' means over their vectors: ``[n, n]``, float64, from -1 to 1.

    Raises MuppetError for prompts of different backbones, whose vectors mean different things.
    """
    first = prompts[0]
    for prompt in prompts:
        if prompt.backbone != first.backbone or prompt.matrix.shape[1] != first.matrix.shape[1]:
            raise MuppetError(
                f"the prompts of {first.file} and {prompt.file} were trained on different backbones, so they cannot be "
                "compared; name checkpoints of one"
            )
    means = functional.normalize(torch.stack([prompt.matrix.double().mean(dim=0) for prompt in prompts]))
    return (means @ means.T).clamp(-1, 1)


def labels(prompts: Sequence[FoldedPrompt]) -> list[str]:
    """The prompts' datasets, with the file where there are several of one dataset."""
    times = Counter(prompt.dataset for prompt in prompts)
    return [prompt.dataset if times[prompt.dataset] == 1 else f"{prompt.dataset} ({prompt.file})" for prompt in prompts]
