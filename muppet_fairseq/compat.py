"""Every workaround for the versions of fairseq, PyTorch and Python that this package runs on; those for checkpoints
are in :mod:`muppet_fairseq.run_checkpoints`.

Each function says which version needs it and why; :func:`apply` is called once, when the package is imported.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import FullyShardedDataParallel
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar
from fairseq.models import distributed_fairseq_model
from fairseq.trainer import Trainer
from torch.nn.parallel import DistributedDataParallel

from muppet_fairseq import run_checkpoints
from muppet_fairseq.errors import MuppetError

logger = logging.getLogger(__name__)


def _data_parallel(module: torch.nn.Module, **options: Any) -> DistributedDataParallel:
    if next(module.parameters()).device.type == "cpu":
        options.update(device_ids=None, output_device=None)
    if getattr(module, "leaves_unused", False):
        options["find_unused_parameters"] = True
    return DistributedDataParallel(module=module, **options)


def adapt_data_parallel() -> None:
    """ve-fairseq 0.12.3 names a CUDA device for ``--ddp-backend pytorch_ddp`` even on a CPU, where PyTorch then
    refuses; and it needs ``--find-unused-parameters`` for a model that leaves some unused (looking for them in
    vain takes time)."""
    distributed_fairseq_model.DistributedDataParallel = _data_parallel


def _load_upgraded(
    self: FullyShardedDataParallel, state: dict[str, Any], strict: bool = True, model_cfg: Any = None
) -> Any:
    if not self.use_sharded_state:
        # the model itself has but the part of this worker, and under other names; the first worker gets it all,
        # and what it makes of ``state`` goes to the others
        model, whole = self.unwrapped_module, super(FullyShardedDataParallel, self).state_dict()
        problem = None
        if self.rank == 0:
            model.state_dict = lambda: whole
            try:
                model.upgrade_state_dict(state)
            except MuppetError as error:
                problem = str(error)
            finally:
                del model.state_dict
        problem = distributed_utils.broadcast_object(problem, src_rank=0, group=self.process_group)
        if problem is not None:
            raise MuppetError(problem)
    return _load_as_it_is(self, state, strict, model_cfg)


_load_as_it_is = FullyShardedDataParallel.load_state_dict


def upgrade_sharded() -> None:
    """With ``--ddp-backend fully_sharded`` ve-fairseq 0.12.3 loads a checkpoint without the model's own
    ``upgrade_state_dict``: fairseq's published ones, or one with other heads, would not fit."""
    FullyShardedDataParallel.load_state_dict = _load_upgraded


def _call_main(cfg: Any, main: Callable[..., None], **options: Any) -> None:
    common, distributed = cfg.common, cfg.distributed_training
    if common.bf16 and not _installed("torch_xla"):
        common.tpu = distributed.tpu = False
    if distributed.distributed_init_method is None:
        distributed_utils.infer_init_method(distributed)
    check_parallel(common, distributed)
    _call_main_as_it_is(cfg, main, **options)


_call_main_as_it_is = distributed_utils.call_main


def check_parallel(common: Any, distributed: Any) -> None:
    """Raise MuppetError for options of fairseq's that cannot work here or together.

    Args:
        common, distributed: the sections ``common`` and ``distributed_training`` of fairseq's configuration.
    """
    backend = f"--ddp-backend {distributed.ddp_backend}"
    on_cpu = common.cpu or not torch.cuda.is_available()
    sharded, slowmo = distributed.ddp_backend == "fully_sharded", distributed.ddp_backend == "slowmo"
    zero = distributed.zero_sharding != "none"
    name = backend if sharded or slowmo else f"--zero-sharding {distributed.zero_sharding}"
    other = "choose --ddp-backend pytorch_ddp or legacy_ddp"
    for wrong, sentence in (
        (on_cpu and (sharded or slowmo), f"{backend} needs GPUs: {other}"),
        (on_cpu and common.fp16, "--fp16 needs a GPU: train without it, or with --bf16"),
        (
            (sharded or slowmo or zero) and not _installed("fairscale"),
            f"{name} needs the package fairscale: pip install fairscale==0.4.13, or leave that option out",
        ),
        (
            (sharded or zero) and distributed.distributed_init_method is None,
            f"{name} divides a state among workers, but this run has only one: leave that option out",
        ),
        (sharded and common.bf16, f"{backend} does not go with --bf16: use --fp16, or {other}"),
        (sharded and zero, f"{backend} shards the optimizer, too: leave --zero-sharding out"),
        (
            sharded and distributed.not_fsdp_flatten_parameters,
            "--not-fsdp-flatten-parameters needs a gradient for each parameter on every worker, which heads that take "
            "turns do not have: leave it out",
        ),
        (
            zero and common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads),
            f"{name} with --fp16 needs --fp16-no-flatten-grads: add that",
        ),
    ):
        if wrong:
            raise MuppetError(sentence)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def start_as_asked() -> None:
    """ve-fairseq 0.12.3 takes ``--bf16`` for ``--tpu``, so that a GPU (or a CPU) is not used, and ends with a traceback
    where what is asked for cannot work (see :func:`check_parallel`)."""
    distributed_utils.call_main = _call_main


def patience() -> dict[str, Any]:
    """What ve-fairseq 0.12.3 counts for ``--patience``, but keeps in no checkpoint: a run that goes on would count
    from nothing. Change it to restore it; it is empty in a program that does not train."""
    train = sys.modules.get("fairseq_cli.train")
    return {} if train is None else vars(train.should_stop_early)


def stop_where_all_is_done() -> None:
    """ve-fairseq 0.12.3 looks at ``--max-update`` and ``--patience`` only after an update: a run that has come to its
    end does one more each time that it is started.

    Does nothing in a program that does not train: importing ``fairseq_cli.train`` sets up logging.
    """
    train = sys.modules.get("fairseq_cli.train")
    if train is None or hasattr(train.train, "stops"):
        return
    train_epoch = train.train

    def train_what_is_left(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> tuple[list[float | None], bool]:
        stopped = 0 < cfg.checkpoint.patience <= patience().get("num_runs", 0)
        if not stopped and trainer.get_num_updates() < (cfg.optimization.max_update or math.inf):
            return train_epoch(cfg, trainer, task, epoch_itr)
        logger.info("all %d updates were done before", trainer.get_num_updates())
        # the checkpoint has kept the meters of an epoch, unless it had ended: the same figures as the first time
        if metrics.get_meters("train") is not None:
            stats = train.get_training_stats(metrics.get_smoothed_values("train"))
            progress = progress_bar.progress_bar([], log_format=cfg.common.log_format, epoch=epoch_itr.epoch)
            progress.print(stats, tag="train", step=trainer.get_num_updates())
        return [None], True

    train_what_is_left.stops = True
    train.train = train_what_is_left


def announce_checkpoints() -> None:
    """ve-fairseq 0.12.3 does not tell a task that a checkpoint is about to be written: this calls its
    ``before_checkpoint``, on every worker."""
    save = checkpoint_utils.save_checkpoint
    if hasattr(save, "announced"):
        return

    def announced_save(cfg: Any, trainer: Trainer, *arguments: Any) -> str | None:
        trainer.task.before_checkpoint()
        return save(cfg, trainer, *arguments)

    announced_save.announced = True
    checkpoint_utils.save_checkpoint = announced_save


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
    upgrade_sharded()
    start_as_asked()
    stop_where_all_is_done()
    silence_known_warnings()
