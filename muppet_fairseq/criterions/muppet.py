"""The scaled multi-task loss (MUPPET, Eq. 1)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor, nn

from muppet_fairseq.criterions.computed import Computed
from muppet_fairseq.criterions.statistics import StatisticsLayout
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Family, Sample

LOSS_SCALINGS = ("log", "none", "size", "inverse")


@dataclass
class MuppetCriterionConfig(FairseqDataclass):
    loss_scaling: ChoiceEnum(LOSS_SCALINGS) = field(
        default="log",
        metadata={
            "help": "weight of an example's loss: 1 / log n(i) (the paper's Eq. 1), none, by the inverse of the "
            "dataset's size, or by the inverse of the dataset's running training loss (Section 3.3)"
        },
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "share of a generated token's target spread evenly over the vocabulary"}
    )


@register_criterion("muppet", dataclass=MuppetCriterionConfig)
class MuppetCriterion(FairseqCriterion):
    """Mean of the scaled losses of a sub-batch's examples.

    ``sample_size`` is 1, so that fairseq's trainer averages over the sub-batches of an update: "the
    gradients from each task are averaged" (§3.1). Logging outputs are sums with the same keys and shapes on
    every worker, so that no step exchanges pickled dictionaries, and nothing here waits for the device.
    """

    def __init__(self, task: Any, loss_scaling: str, label_smoothing: float) -> None:
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise MuppetError(f"--label-smoothing is {label_smoothing}; give a share from 0 to below 1")
        self.loss_scaling, self.label_smoothing = loss_scaling, label_smoothing
        self.layout: StatisticsLayout = task.statistics_layout

    def forward(self, model: nn.Module, sample: Sample) -> tuple[Tensor, int, dict[str, Any]]:
        spec = self.task.specs[sample["dataset"]]
        family = FAMILIES[spec.family]
        logits, losses, further = self.predict(family, model, sample)
        self.task.computed.append(Computed(spec.name, sample["id"], losses.detach()))
        loss = (losses * self.weights(family.num_predictions(logits, sample), sample["dataset"])).mean()
        with torch.no_grad():
            statistics = self.layout.row(
                sample["dataset"],
                loss=losses.mean(),
                scaled_loss=loss,
                counts=family.statistics(logits, sample, spec),
            )
        log = {"statistics": statistics, "ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
        return loss, 1, log | further

    def predict(self, family: Family, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the logits, the unscaled loss of each example ``[B]``, and what else is to be logged."""
        logits = family.logits(model, sample, self.task.heads[sample["dataset"]])
        return logits, family.loss(logits, sample, self.label_smoothing), {}

    def weights(self, num_predictions: Tensor, dataset: int) -> Tensor:
        """The factor of each example's loss, ``[B]``, by ``--loss-scaling``.

        An example with one candidate (``n(i) = 1``) has loss 0 whatever is predicted; its factor is 1.
        """
        if self.loss_scaling == "log":
            return 1 / torch.where(num_predictions > 1, num_predictions, torch.e).log()
        if self.loss_scaling == "none":
            return torch.ones_like(num_predictions)
        factors = self.task.size_weights if self.loss_scaling == "size" else self.task.running_losses.weights()
        return torch.full_like(num_predictions, float(factors[dataset]))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """The task logs: only it knows the datasets. See :meth:`MuppetTask.reduce_metrics`."""
