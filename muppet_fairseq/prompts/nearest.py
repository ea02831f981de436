"""Choose of several prompts the one to start from: the most similar to a first attempt (SPoT, Vu et al. 2022)."""

from __future__ import annotations

import argparse
from pathlib import Path

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_bytes
from muppet_fairseq.prompts.similarity import FoldedPrompt, folded_prompts, labels, similarities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="PROBE", help="checkpoint of the first attempt")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="gets a copy of the chosen checkpoint")
    parser.add_argument(
        "candidates", type=Path, nargs="+", metavar="CANDIDATE", help="checkpoints of one prompt each, on one backbone"
    )


def run(args: argparse.Namespace) -> None:
    """Print how similar each candidate is, and copy the most similar one; of equal ones the first."""
    if args.out.resolve() in [path.resolve() for path in (args.to, *args.candidates)]:
        raise MuppetError(f"--out {args.out} is one of the checkpoints that are compared; name another file")
    probe, *candidates = map(_only_prompt, (args.to, *args.candidates))
    for candidate in candidates:
        if len(candidate.matrix) != len(probe.matrix):
            raise MuppetError(
                f"the prompt of {candidate.file} has {len(candidate.matrix)} vectors, that of {probe.file} "
                f"{len(probe.matrix)}, so no run could start from it; give both the same --prompt-length"
            )
    values = similarities([probe, *candidates])[0, 1:]
    chosen = candidates[int(values.argmax())]
    names = labels(candidates)
    width = max(map(len, names)) + 2
    for name, candidate, value in zip(names, candidates, values.tolist(), strict=True):
        print(f"{name:<{width}}{value:>6.3f}{'  chosen' if candidate is chosen else ''}")
    write_bytes(args.out, chosen.file.read_bytes())


def _only_prompt(checkpoint: Path) -> FoldedPrompt:
    prompts = folded_prompts(checkpoint)
    if len(prompts) > 1:
        raise MuppetError(
            f"{checkpoint} has prompts of {', '.join(prompt.dataset for prompt in prompts)}, so it is not clear which "
            "is meant; name a checkpoint of one dataset"
        )
    return prompts[0]
