"""Every workaround for the versions of fairseq, PyTorch and Python that this package runs on; those for checkpoints
are in :mod:`muppet_fairseq.run_checkpoints`.

Each function says which version needs it and why; :func:`apply` is called once, when the package is imported.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from typing import Any

import torch
from fairseq.logging import metrics, progress_bar
from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel

from muppet_fairseq import run_checkpoints

logger = logging.getLogger(__name__)


def _data_parallel(module: torch.nn.Module, **options: Any) -> DistributedDataParallel:
    if next(module.parameters()).device.type == "cpu":
        options.update(device_ids=None, output_device=None)
    if hasattr(module, "heads"):
        options["find_unused_parameters"] = True
    return DistributedDataParallel(module=module, **options)


def adapt_data_parallel() -> None:
    """ve-fairseq 0.12.3 names a CUDA device for ``--ddp-backend pytorch_ddp`` even on a CPU, where PyTorch then
    refuses; and it needs ``--find-unused-parameters`` for a model whose heads take turns."""
    distributed_fairseq_model.DistributedDataParallel = _data_parallel


def stop_at_max_update() -> None:
    """ve-fairseq 0.12.3 looks at ``--max-update`` only after an update: a run that has had them all does one more
    each time that it is started.

    Does nothing in a program that does not train: importing ``fairseq_cli.train`` sets up logging.
    """
    train = sys.modules.get("fairseq_cli.train")
    if train is None or hasattr(train.train, "stops"):
        return
    train_epoch = train.train

    def train_what_is_left(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> tuple[list[float | None], bool]:
        if trainer.get_num_updates() < (cfg.optimization.max_update or math.inf):
            return train_epoch(cfg, trainer, task, epoch_itr)
        logger.info("all %d updates were done before", trainer.get_num_updates())
        # the checkpoint has kept the epoch's meters: the same figures as the first time
        stats = train.get_training_stats(metrics.get_smoothed_values("train"))
        progress = progress_bar.progress_bar([], log_format=cfg.common.log_format, epoch=epoch_itr.epoch)
        progress.print(stats, tag="train", step=trainer.get_num_updates())
        return [None], True

    train_what_is_left.stops = True
    train.train = train_what_is_left


def silence_known_warnings() -> None:
    """ve-fairseq 0.12.3 pins memory without a GPU and calls autocast by its old name, once a step (torch >= 2.4)."""
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*")
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.*", category=FutureWarning)
    # its decoder gives attention a float mask for the future and a bool one for padding
    warnings.filterwarnings("ignore", message=".*mismatched key_padding_mask.*")
    # fairseq calls Hydra in its 1.0 way; Hydra says so in ten lines at every start
    warnings.filterwarnings("ignore", module="hydra.*")
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against ConfigStore schema.*")


def apply() -> None:
    run_checkpoints.install()
    adapt_data_parallel()
    stop_at_max_update()
    silence_known_warnings()
