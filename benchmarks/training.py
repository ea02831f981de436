"""A suite, its sub-batches and a model, as ``fairseq-train --task muppet`` puts them together, without its trainer."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import nn

from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.schedule import BatchSchedule, SubBatchLimits
from muppet_fairseq.families.base import Sample
from muppet_fairseq.models import bart, roberta  # noqa: F401 - registers the models
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig


def open_task(data: str | Path, suite: str, max_positions: int) -> MuppetTask:
    """The task with its training set loaded. Raises MuppetError."""
    run_options = {"seed": 1, "update_freq": [1], "train_subset": "train", "save_dir": "no-run", "reuse_heads": True}
    task = MuppetTask.setup_task(
        MuppetTaskConfig(data=str(data), suite=suite, max_positions=max_positions, **run_options)
    )
    task.load_dataset("train")
    return task


def build_model(task: MuppetTask, arch: str, **options: Any) -> nn.Module:
    """An untrained model with the suite's heads; ``options`` are arguments of its architecture."""
    args = Namespace(arch=arch, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def sub_batches_of(task: MuppetTask, max_tokens: int) -> dict[str, list[np.ndarray]]:
    """The sub-batches (global example indices) of each dataset, in no particular order."""
    schedule = BatchSchedule(task.datasets["train"].sizes_by_dataset(), SubBatchLimits(max_tokens, None))
    return {
        spec.name: [schedule[b] for b in np.flatnonzero(schedule.dataset == number)]
        for number, spec in enumerate(task.specs)
    }


def collate(dataset: MultitaskDataset, examples: np.ndarray) -> Sample:
    """A sub-batch on the CPU."""
    return dataset.collater([dataset[int(i)] for i in examples])
