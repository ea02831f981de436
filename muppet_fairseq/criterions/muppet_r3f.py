"""R3F on top of the multi-task loss (MUPPET §3.2; Aghajanyan et al. 2020); with ``--spectral-norm-heads``, R4F."""

import logging
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from fairseq import metrics
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn

from muppet_fairseq.criterions.muppet import MuppetCriterion, MuppetCriterionConfig
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Family, Sample
from muppet_fairseq.r3f import NOISE_TYPES, EmbeddingNoise

#: of a whole update's sub-batches: sums, and the number of sub-batches that were noised
_LOGGED = ("divergence", "noise_survived", "noised")

#: nats; a smaller divergence has no part in any loss. It goes with the square of --eps
NEGLIGIBLE = 1e-6

#: repeats of the same warning are dropped
_warn_once = cache(logging.getLogger(__name__).warning)


@dataclass
class MuppetR3FCriterionConfig(MuppetCriterionConfig):
    r3f_lambda: float = field(default=1.0, metadata={"help": "weight of the divergence"})
    eps: float = field(default=1e-5, metadata={"help": "size of the noise on the token embeddings"})
    noise_type: ChoiceEnum(NOISE_TYPES) = field(
        default="uniform", metadata={"help": "U(-eps, eps), or normal with standard deviation eps"}
    )


@register_criterion("muppet_r3f", dataclass=MuppetR3FCriterionConfig)
class MuppetR3FCriterion(MuppetCriterion):
    """An example's loss plus ``r3f_lambda`` times the symmetric KL between the predictions on clean and on noised
    embeddings; both are scaled by the example's factor. Validation is without noise.

    Logs ``divergence`` (unscaled, mean over sub-batches) and ``noise_survived``, the share of embedding entries that
    the noise changed.
    """

    def __init__(
        self, task: Any, loss_scaling: str, label_smoothing: float, r3f_lambda: float, eps: float, noise_type: str
    ) -> None:
        super().__init__(task, loss_scaling, label_smoothing)
        if not 0 < eps < math.inf:
            raise MuppetError(f"--eps is {eps}; give a size above 0, or use --criterion muppet for no noise")
        if not 0 <= r3f_lambda < math.inf:
            raise MuppetError(f"--r3f-lambda is {r3f_lambda}; give a weight of at least 0")
        self.r3f_lambda = r3f_lambda
        self.noise = EmbeddingNoise(eps, noise_type)

    def predict(self, family: Family, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if not self.training:
            logits, losses, _ = super().predict(family, model, sample)
            return logits, losses, {key: torch.zeros((), device=logits.device) for key in _LOGGED}
        head = self.task.heads[sample["dataset"]]
        noised: list[Tensor] = []

        def clean_half(*args: Any, **inputs: Any) -> Tensor:
            clean, half = model(*args, noise=self.noise, **inputs).chunk(2)
            noised.append(half)
            return clean

        # one call of the model; what the family does with its output is done for each half
        logits = family.logits(clean_half, sample, head)
        noised_logits = family.logits(lambda *args, **inputs: noised[0], sample, head)
        divergence = family.divergence(logits, noised_logits, sample)
        losses = family.loss(logits, sample, self.label_smoothing) + self.r3f_lambda * divergence
        values = (divergence.detach().mean(), self.noise.survived, torch.ones((), device=logits.device))
        return logits, losses, dict(zip(_LOGGED, values, strict=True))

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        divergence, survived, noised = (float(sum(log[key] for log in logging_outputs)) for key in _LOGGED)
        if not noised:
            return
        metrics.log_scalar("divergence", divergence / noised, noised, priority=40, round=6)
        metrics.log_scalar("noise_survived", survived / noised, noised, priority=41, round=3)
        if survived < 0.5 * noised:
            _warn_once(
                "the noise of --eps changed less than half of the embedding entries: it rounds away in half precision; "
                "give a larger --eps, or train in float32"
            )
        elif divergence < NEGLIGIBLE * noised:
            _warn_once(
                f"the divergence is below {NEGLIGIBLE}: the noise of --eps changes next to nothing in the predictions, "
                "and R3F adds nothing to training; give a larger --eps, or a --dropout, whose masks differ, too"
            )
