"""Pack a checkpoint for others: model, dictionary, tokenizer and a model card, in one folder or archive."""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.card import datasets_section, training_section
from muppet_fairseq.data.binarized import open_tokenizer
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import new_folder, unwritable
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trained import TrainedModel, model_options, read_checkpoint, task_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a run, as checkpoint_best.pt")
    parser.add_argument("out", type=Path, help="new folder, or new file that ends in .tar.gz")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data-bin folder; default: the one of the run")


def run(args: argparse.Namespace) -> None:
    """Release and say what was written."""
    parameters = release(args.checkpoint, args.out, args.data)
    print(f"released {args.checkpoint} as {args.out}: {parameters:,} parameters")


def release(checkpoint: Path, out: Path, data: Path | None = None) -> int:
    """Write the release ``out`` of ``checkpoint`` and return its number of parameters.

    Raises:
        MuppetError: ``out`` exists, or the checkpoint or its data-bin's dictionary and tokenizer cannot be used.
    """
    if out.exists():
        raise MuppetError(f"{out} is there already; name a new folder, or a new file that ends in .tar.gz")
    # loads as it will for others, or says why not
    state, trained, tokenizer, data = open_run(checkpoint, data)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())

    def write(folder: Path) -> None:
        tokenizer.save(folder)
        checkpoint_file.write(
            packed(
                portable_task_options(state["cfg"]["task"], trained.task.specs),
                model_options(state["cfg"]["model"]),
                own_storage(state["model"]),
                state["task_state"],
            ),
            folder / "model.pt",
        )
        (folder / "README.md").write_text(_card(state, trained, data, out, parameters), encoding="utf-8")

    if not out.name.endswith(".tar.gz"):
        with new_folder(out) as folder:
            write(folder)
        return parameters
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            inner, archive = Path(place, out.name.removesuffix(".tar.gz")), Path(place, out.name)
            inner.mkdir()
            write(inner)
            with tarfile.open(archive, "w:gz") as tar:
                tar.add(inner, inner.name)
            os.replace(archive, out)
    except (OSError, RuntimeError) as error:
        raise unwritable(out, error) from None
    return parameters


class Run(NamedTuple):
    """A checkpoint of a run, with what belongs to it.

    Attributes:
        state: what :func:`read_checkpoint` gives.
        data: the data-bin.
    """

    state: dict[str, Any]
    trained: TrainedModel
    tokenizer: Tokenizer
    data: Path


def open_run(checkpoint: Path, data: Path | None = None) -> Run:
    """Open a checkpoint with the tokenizer of its data-bin, that of the run if ``data`` is None. Raises MuppetError."""
    state = read_checkpoint(checkpoint)
    data = Path(state["cfg"]["task"]["data"]) if data is None else data
    if not (data / "dict.txt").is_file():
        raise MuppetError(f"{data} is no data-bin folder, it has no dict.txt; name the one of the run with --data")
    trained = TrainedModel.load(checkpoint, data / "tokenizer" / "dict.txt")
    names = [spec.name for spec in trained.task.specs]
    tokenizer = open_tokenizer(data, [name for name in names if (data / name / "dataset.json").is_file()])
    return Run(state, trained, tokenizer, data)


def portable_task_options(options: dict[str, Any], specs: Sequence[DatasetSpec]) -> dict[str, Any]:
    """A checkpoint's task without what is of a run, and of its machine."""
    return {"_name": "muppet", "data": ".", "suite": ",".join(spec.name for spec in specs)} | task_options(options)


def own_storage(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that hold no more than themselves, each shared one once."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: copies.setdefault((tensor.data_ptr(), tensor.shape), tensor.clone()) for name, tensor in model.items()
    }


def _card(state: dict[str, Any], trained: TrainedModel, data: Path, out: Path, parameters: int) -> str:
    options, task = state["cfg"]["model"], trained.task
    name = out.name.removesuffix(".tar.gz")
    lines = [f"# {name}", ""]
    lines.append(
        f"A `{options['arch']}` of {parameters:,} parameters, trained with muppet_fairseq (MUPPET: massive multi-task "
        f"representations with pre-finetuning, Aghajanyan et al. 2021) on {len(task.specs)} datasets."
    )
    lines += ["", "```python", "from muppet_fairseq.hub import MuppetHub", "", f'hub = MuppetHub.load("{name}")']
    lines += [*_examples(task.specs), "```", "", *datasets_section(task, data), "", *training_section(options, task)]
    return "\n".join(lines) + "\n"


def _examples(specs: list[DatasetSpec]) -> list[str]:
    """A line of Python for each kind of question that the model answers."""
    lines = {}
    for spec in specs:
        texts = '"a text"' if spec.num_inputs == 1 else '"a text", "a second one"'
        lines.setdefault(
            spec.family,
            {
                "classification": f'hub.classify("{spec.name}", {texts})',
                "regression": f'hub.score("{spec.name}", {texts})',
                "commonsense": 'hub.choose("a question", ["one answer", "another"])',
                "mrc": 'hub.answer("a question", "a passage")',
                "summarization": 'hub.summarize("a text", beam=4)',
                "tagging": f'hub.tag("{spec.name}", ["some", "words"])',
            }[spec.family],
        )
    return list(lines.values())
