"""fairseq's trainer and ours as ``fairseq-train`` builds them, in one process: both get the same sub-batches."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from torch import nn

from muppet_fairseq.models import bart, roberta  # noqa: F401 - registers the models

#: layers, width and attention heads of RoBERTa's encoder
SIZES = {"tiny": (2, 64, 2), "minilm": (6, 384, 12), "base": (12, 768, 12), "large": (24, 1024, 16)}

_OPTIMIZER = "--optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-06 --weight-decay 0.1 --lr 1e-05 --clip-norm 1"
_STOCK_HEAD = "sentence_classification_head"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`words_of_model` and of the data."""
    parser.add_argument("data", type=Path, help="data-bin folder")
    parser.add_argument("--size", choices=SIZES, default="minilm", help="of the encoder (default: %(default)s)")
    parser.add_argument("--max-positions", type=int, default=256, help="longer examples are left out")
    parser.add_argument("--max-tokens", type=int, default=2048, help="padded tokens x rows of a sub-batch")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def words_of_model(args: argparse.Namespace) -> list[str]:
    """The arguments of ``fairseq-train`` that are the same for both."""
    layers, dim, heads = SIZES[args.size]
    sizes = f"--encoder-layers {layers} --encoder-embed-dim {dim} --encoder-ffn-embed-dim {4 * dim}"
    sizes += f" --encoder-attention-heads {heads} --max-positions {args.max_positions}"
    dropout = " ".join(f"--{kind}dropout {args.dropout}" for kind in ("", "attention-", "pooler-"))
    device = "--cpu" if args.cpu else ""
    return f"{_OPTIMIZER} {sizes} {dropout} --max-tokens {args.max_tokens} --no-save {device}".split()


def words_of_muppet(args: argparse.Namespace, data: Path, suite: str) -> list[str]:
    """The arguments of our training: the loss is that of stock fairseq, which does not scale it."""
    task = f"{data} --task muppet --suite {suite} --arch muppet_roberta --criterion muppet --loss-scaling none"
    return [*task.split(), *words_of_model(args)]


def words_of_stock(args: argparse.Namespace, data: Path, task: str, classes: int) -> list[str]:
    """The arguments of stock fairseq's ``sentence_prediction`` or ``sentence_ranking``, which are named alike."""
    layout = f"--init-token 0 --separator-token 2 --num-classes {classes}"
    return [*f"{data} --task {task} --arch roberta --criterion {task} {layout}".split(), *words_of_model(args)]


class Side:
    """A trainer that takes updates, with meters of its own: fairseq keeps those of a process in one place.

    Args:
        words: the arguments of ``fairseq-train``.
        trainer: its class.
        setup_task: makes the task of its configuration.

    Attributes:
        trainer: built; its task has loaded no data.
    """

    def __init__(
        self, words: Sequence[str], trainer: type[Trainer], setup_task: Callable[[Any], FairseqTask] = tasks.setup_task
    ) -> None:
        args = options.parse_args_and_arch(options.get_training_parser(), list(words))
        cfg = convert_namespace_to_omegaconf(args)
        task = setup_task(cfg.task)
        torch.manual_seed(cfg.common.seed)
        model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
        self.trainer = trainer(cfg, task, model, criterion)
        self._meters: dict[str, Any] = {}

    @cached_property
    def dataset(self) -> Any:
        """The training set."""
        self.trainer.task.load_dataset("train")
        return self.trainer.task.dataset("train")

    @property
    def model(self) -> nn.Module:
        return self.trainer.get_model()

    def collate(self, examples: Sequence[int]) -> dict[str, Any]:
        """A sub-batch on the CPU."""
        return self.dataset.collater([self.dataset[int(i)] for i in examples])

    def update(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One update of these sub-batches; what fairseq logs of it."""
        with mock.patch.object(metrics, "_aggregators", self._meters), metrics.aggregate(new_root=True):
            return self.trainer.train_step(samples)


def copy_weights(stock: nn.Module, ours: nn.Module, head: str) -> None:
    """Give our model the weights of stock fairseq's, and our ``head`` those of its only one."""
    weights = stock.state_dict()
    mine, theirs = f"heads.{head}.", f"classification_heads.{_STOCK_HEAD}."
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights[name.replace(mine, theirs)])
