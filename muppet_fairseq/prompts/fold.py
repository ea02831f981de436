"""Fold the prompts of a checkpoint, so that each dataset has one matrix and nothing is left to multiply."""

from __future__ import annotations

import argparse
from pathlib import Path

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import unwritable
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.release import own_storage, portable_task_options
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trained import model_options, other_version, read_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a run with --tune prompts")
    parser.add_argument("out", type=Path, help="new file: what 'muppet evaluate --prompts' and the hub take")


def run(args: argparse.Namespace) -> None:
    """Fold and say what was written."""
    datasets = fold(args.checkpoint, args.out)
    print(f"folded the prompts of {', '.join(datasets)} into {args.out}: {args.out.stat().st_size:,} bytes")


def fold(checkpoint: Path, out: Path) -> list[str]:
    """Write the checkpoint ``out`` of vanilla prompts, with the heads of ``checkpoint`` and without a run's own state.

    Returns:
        the datasets.

    Raises:
        MuppetError: the checkpoint holds no prompts, or ``out`` exists or cannot be written.
    """
    if out.exists():
        raise MuppetError(f"{out} is there already; name a new file")
    (state, prompts), start = read_prompts(checkpoint), "prompts."
    folded = prompts.fold()
    rest = {key: value for key, value in state["model"].items() if not key.startswith(start)}
    try:
        specs = [DatasetSpec.from_dict(values) for values in state["task_state"]["specs"]]
        task = portable_task_options(state["cfg"]["task"], specs)
        model = model_options(state["cfg"]["model"]) | {"prompt_type": "vanilla"}
    except (AttributeError, KeyError, TypeError):
        raise other_version(checkpoint) from None
    tensors = own_storage(rest | {f"{start}P_{name}": matrix for name, matrix in folded.items()})
    content = packed(task, model, tensors, state["task_state"])
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint_file.write(content, temporary)
        checkpoint_file.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(out, error) from None
    return list(folded)
