"""fairseq's trainer, for suites in which one dataset may spoil an update, and for workers that may die."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
import torch.distributed
from fairseq import trainer as fairseq_trainer
from fairseq.logging import metrics
from fairseq.optim import FP16Optimizer, lr_scheduler
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from torch import Tensor

from muppet_fairseq import lr_factors
from muppet_fairseq.criterions.computed import CURE
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Sample
from muppet_fairseq.optimizer import fused_adam
from muppet_fairseq.tasks.muppet import MuppetTask
from muppet_fairseq.watch import Watch

logger = logging.getLogger(__name__)

#: so many updates in a row may have no sub-batch with a finite loss
_MOST_EMPTY_UPDATES = 10

#: in a checkpoint's ``extra_state``: what fairseq does not keep of a run in half precision
_PRECISE = "full_precision"
#: what fairseq's loss scaler counts
_COUNTED = ("_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")

_GO_BACK = "go back to a checkpoint from before, with a lower --lr"


class NotFiniteError(Exception):
    """An update's gradient is not finite. None of the errors that fairseq's trainer deals with itself."""

    def __init__(self, by_gradient: bool) -> None:
        super().__init__("the gradient is not finite")
        #: whether finite losses may have gradients that are not; False where these come of fp16's loss scale
        self.by_gradient = by_gradient


class MuppetTrainer(fairseq_trainer.Trainer):
    """Trains with ``--task muppet``; for other tasks it is fairseq's trainer.

    * A loss or gradient that is not finite costs nothing until it happens: fairseq looks at the norm of every
      update's gradient. Then each worker goes through its sub-batches once more, one by one, and names those that are
      not finite; with ``--on-bad-loss skip`` the update is done again without them. An fp16 gradient that overflows
      while all losses are finite is left to fairseq's loss scaler.
    * Workers watch over each other: :class:`muppet_fairseq.watch.Watch`.
    * Parts of the model have learning rates of their own: :mod:`muppet_fairseq.lr_factors`.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._muppet = isinstance(self.task, MuppetTask)
        self._empty_updates = 0
        self._lr_factors = self.task.lr_factors if self._muppet else {}
        lr_factors.check(self._lr_factors, self.cfg.common, self.cfg.distributed_training)
        if self._muppet and self.data_parallel_world_size > 1:
            self.task.watch = Watch.start(self.task.cfg.worker_timeout)

    def _step(self, doing: str) -> AbstractContextManager[None]:
        watch = self.task.watch if self._muppet else None
        return watch.step(doing) if watch else nullcontext()

    # -- what fairseq calls -----------------------------------------------------------------------------

    def _build_optimizer(self) -> None:
        """fairseq's, with Adam in one kernel; ``--use-old-adam`` asks for fairseq's own. And with ``--lr-factors``."""
        old = getattr(self.cfg.optimizer, "use_old_adam", True) or self.tpu
        with fused_adam() if self._muppet and not old else nullcontext():
            super()._build_optimizer()
        if self._lr_factors:
            lr_factors.split(self._lr_factors, self._optimizer, self._model)
            # a schedule may count the groups
            self._lr_scheduler = lr_scheduler.build_lr_scheduler(self.cfg.lr_scheduler, self._optimizer)
            self._lr_scheduler.step_update(0)

    def train_step(self, samples: list[Sample], raise_oom: bool = False) -> dict[str, Any] | None:
        """One update. None, as after an overflow, where no sub-batch was left to make it of.

        Raises MuppetError for losses that are not finite, unless ``--on-bad-loss skip`` leaves them out.
        """
        if not self._muppet:
            return super().train_step(samples, raise_oom)
        skipped = 0
        with self._step(f"update {self.get_num_updates() + 1}"):
            while True:
                self.task.begin_update()
                try:
                    output = super().train_step(samples, raise_oom)
                    self._empty_updates = 0
                    break
                except NotFiniteError as error:
                    samples, left_out, left = self._without_bad(samples, by_gradient=error.by_gradient)
                skipped += left_out
                if not left:
                    self._skip_update()
                    output = None
                    break
        if skipped:
            metrics.log_scalar_sum("skipped", skipped, priority=899)
        return output

    def valid_step(self, sample: Sample, raise_oom: bool = False) -> dict[str, Any]:
        """One batch of validation."""
        with self._step(f"validation after update {self.get_num_updates()}"):
            return super().valid_step(sample, raise_oom)

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> str | None:
        """Write a checkpoint; the other workers may wait for it."""
        if self._muppet and self.task.watch:
            self.task.watch.says(f"writing {filename}")
        return super().save_checkpoint(filename, extra_state)

    def state_dict(self) -> dict[str, Any]:
        """fairseq's, with what ``--fp16`` and ``--bf16`` need to go on exactly: the optimizer's parameters in full
        precision, and what the loss scaler counts."""
        state = super().state_dict()
        if not self.cfg.checkpoint.no_save_optimizer_state:
            counted = {name: getattr(scaler, name) for scaler in self._scalers() for name in _COUNTED}
            precise = {"parameters": [parameter.detach() for parameter in self._full_precision()], "scaler": counted}
            state["extra_state"][_PRECISE] = precise
        return state

    def load_checkpoint(self, filename: str, reset_optimizer: bool = False, *arguments: Any, **keywords: Any) -> Any:
        """fairseq's, with what :meth:`state_dict` adds, where it fits: ``--fp16`` may keep all parameters as one."""
        extra_state = super().load_checkpoint(filename, reset_optimizer, *arguments, **keywords)
        precise = (extra_state or {}).pop(_PRECISE, None)
        if precise is None or reset_optimizer:
            return extra_state
        own, saved = self._full_precision(), precise["parameters"]
        if [parameter.shape for parameter in own] == [parameter.shape for parameter in saved]:
            for parameter, value in zip(own, saved, strict=True):
                parameter.data.copy_(value)
        for scaler in self._scalers():
            vars(scaler).update({name: int(value) for name, value in precise["scaler"].items() if name in _COUNTED})
        return extra_state

    def _full_precision(self) -> list[Tensor]:
        """The parameters that the optimizer changes, where those of the model are rounded ones."""
        if not isinstance(self.optimizer, FP16Optimizer):
            return []
        parameters = self.optimizer.fp32_params
        return list(parameters.values() if isinstance(parameters, dict) else parameters)

    def _scalers(self) -> list[DynamicLossScaler]:
        """fp16's, if there is one."""
        scaler = getattr(self.optimizer, "scaler", None)
        return [scaler] if isinstance(scaler, DynamicLossScaler) else []

    def clip_grad_norm(self, clip_norm: float) -> Tensor:
        """fairseq's, which it calls once the gradient is complete. Raises NotFiniteError."""
        if not self._muppet:
            return super().clip_grad_norm(clip_norm)
        before = [(scaler, dict(vars(scaler))) for scaler in self._scalers()]
        losses_are_finite = self._losses_are_finite()
        by_scale = bool(self.cfg.common.amp)  # whose gradients may overflow: the optimizer then makes no step
        try:
            norm = super().clip_grad_norm(clip_norm)
            # fairseq is going to wait for the norm, too
            if bool(losses_are_finite & torch.isfinite(norm).all()) or (by_scale and losses_are_finite):
                return norm
        except OverflowError:
            if losses_are_finite:
                raise
            by_scale = True
        except FloatingPointError:  # fp16's scale is at its minimum: it is not to blame
            pass
        for scaler, values in before:
            vars(scaler).update(values)
        raise NotFiniteError(by_gradient=not by_scale)

    def _aggregate_logging_outputs(self, *arguments: Any, **keywords: Any) -> Any:
        if self._muppet:
            self.task.watch.passes("waiting for the others")
        outputs, others = super()._aggregate_logging_outputs(*arguments, **keywords)
        self._everyones_statistics = outputs[0].get("statistics")
        return outputs, others

    # -- losses that are not finite -------------------------------------------------------------------

    def _losses_are_finite(self) -> Tensor:
        """Whether all losses of the update are finite, on all workers: a truth value that is still on the device."""
        if self.data_parallel_world_size > 1:
            return torch.isfinite(self._everyones_statistics).all()
        return torch.stack([torch.isfinite(sub_batch.losses).all() for sub_batch in self.task.computed]).all()

    def _without_bad(self, samples: list[Sample], *, by_gradient: bool) -> tuple[list[Sample], int, int]:
        """Return the samples without those that are not finite; over all workers, how many these are and how many are
        left. Raises MuppetError with ``--on-bad-loss stop``, and where no sub-batch alone is to blame."""
        bad, sentences, idle_is_bad = [], [], False
        self._set_seed()  # the same dropout as before
        self.model.train()
        self.criterion.train()
        for number, sample in enumerate(samples):
            sentence = self._complaint(sample, by_gradient=by_gradient)
            if sentence is None:
                continue
            if sample:
                bad.append(number)
                sentences.append(sentence)
            else:
                idle_is_bad = True
        sound = [sample for number, sample in enumerate(samples) if sample and number not in bad]
        everyones, left, idle = self._of_all_workers(sentences, len(sound), idle_is_bad)
        where = f"update {self.get_num_updates() + 1}"
        if not everyones and not idle:
            raise MuppetError(
                f"{where}: the gradient is not finite, though that of each sub-batch alone is; lower --lr, or "
                "--update-freq"
            )
        if everyones and self.task.cfg.on_bad_loss == "stop":
            more = f" (and in {len(everyones) - 1} more sub-batches)" if len(everyones) > 1 else ""
            raise MuppetError(f"{where}: {everyones[0]}{more}; {CURE}")
        if self.is_data_parallel_master:
            for sentence in everyones:
                logger.warning("%s goes on without a sub-batch: %s", where, sentence)
        for number in bad:
            self.task.skip(samples[number])
        self._choose_dummy(sound)
        # what is idle comes first: fairseq forgets a worker whose last sub-batch is
        return [{}] * (len(samples) - len(sound)) + sound, len(everyones), left

    def _complaint(self, sample: Sample, *, by_gradient: bool) -> str | None:
        """Compute one sub-batch, and say which examples of which dataset have a loss or gradient that is not finite."""
        prepared, _ = self._prepare_sample(sample)
        self.task.begin_update()
        # sharded gradients would be all workers' together
        by_gradient = by_gradient and not self.is_fsdp
        with torch.set_grad_enabled(by_gradient), torch.autocast(self.device.type, enabled=self.cfg.common.amp):
            loss, _, _ = self.criterion(self._model, prepared)
        (computed,) = self.task.computed
        if computed.is_bad():
            return computed.complaint()
        if by_gradient:
            # not added up in the parameters, where data-parallel wrappers would take notice
            parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None):
                return computed.complaint()
        return None

    def _of_all_workers(self, sentences: list[str], left: int, idle: bool) -> tuple[list[str], int, bool]:
        """Join what each worker has found."""
        found: list[Any] = [(sentences, left, idle)]
        if self.data_parallel_world_size > 1:
            found *= self.data_parallel_world_size
            torch.distributed.all_gather_object(found, (sentences, left, idle), group=self.data_parallel_process_group)
        everyones = [sentence for one in found for sentence in one[0]]
        return everyones, sum(one[1] for one in found), any(one[2] for one in found)

    def _choose_dummy(self, sound: list[Sample]) -> None:
        """A worker that has nothing to do computes something, times zero: it must be finite."""
        iterator = self.task.dataset_to_epoch_iter[self.task.dataset(self.cfg.dataset.train_subset)]
        cheapest_first = sorted(sound, key=lambda sample: sample["ntokens"])
        for dummy in chain([self._dummy_batch], cheapest_first, iterator.smallest_batches()):
            self._dummy_batch = dummy
            if self._complaint({}, by_gradient=True) is None:
                return
        raise MuppetError(f"update {self.get_num_updates() + 1}: no dataset has a finite loss any more; {_GO_BACK}")

    def _skip_update(self) -> None:
        """All sub-batches of an update are left out. Raises MuppetError where that is no accident any more."""
        self._empty_updates += 1
        if self._empty_updates >= _MOST_EMPTY_UPDATES:
            raise MuppetError(f"{self._empty_updates} updates in a row had no finite loss; {_GO_BACK}")
        self.zero_grad()


def install() -> None:
    """Have ``fairseq-train`` use this trainer; in a program that does not train, do nothing."""
    train = sys.modules.get("fairseq_cli.train")
    if train is not None:
        train.Trainer = MuppetTrainer
