"""Prompt distillation on top of the multi-task loss (MPT, Wang et al. 2023, §3.1)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn

from muppet_fairseq.criterions.muppet import MuppetCriterion, MuppetCriterionConfig
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Family, Sample
from muppet_fairseq.models.base import Hidden, Part
from muppet_fairseq.prompts.teachers import load_teachers
from muppet_fairseq.r3f import kl

#: what of the teachers is learnt
DISTILLED = ("both", "logits", "hidden")

#: of a whole update's sub-batches: a sum, and of how many sub-batches
_LOGGED = ("distill_logits", "distill_hidden")


@dataclass
class MuppetDistillCriterionConfig(MuppetCriterionConfig):
    teachers: str = field(
        default="",
        metadata={
            "help": "checkpoints of runs with --tune prompts on the same backbone, with commas between: a teacher for "
            "each dataset of the suite"
        },
    )
    distillation_weight: float = field(
        default=1.0, metadata={"help": "weight of what is learnt from the teachers (lambda of MPT's Eq. 5); 0: nothing"}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "both predictions' logits are divided by it (Eq. 3)"}
    )
    distill: ChoiceEnum(DISTILLED) = field(
        default="both",
        metadata={"help": "learn the teachers' predictions (logits), the states of their layers (hidden), or both"},
    )


@register_criterion("muppet_distill", dataclass=MuppetDistillCriterionConfig)
class MuppetDistillCriterion(MuppetCriterion):
    """An example's loss plus ``distillation_weight`` times ``L_logit + L_hidden``, all scaled by the example's factor.

    * ``L_logit`` (Eq. 3) is the divergence KL(teacher || student) of the predictions, softened by the temperature, over
      what the loss ranges over: classes, choices, positions (mean of start and end), the vocabulary (mean over tokens).
      As in the equation, it is not multiplied with the temperature's square. Of regression, which predicts no
      distribution, it is the squared difference of the two numbers: the loss, with the teacher's for a label.
    * ``L_hidden`` (Eq. 4) is the squared difference of the states of all layers, encoder's and decoder's: the mean over
      layers, over the tokens of the example's rows and over the width. The equation's sum would make λ depend on the
      model's size. Prompts' own positions are left out, so that teachers' may have another length.

    The teachers predict without dropout and without a gradient, on the student's own backbone. Validation is without
    them. At λ = 0 they are only checked: loss and gradients are those of criterion ``muppet``, bit for bit.

    Logs ``distill_logits`` and ``distill_hidden``, unscaled means over sub-batches.
    """

    def __init__(
        self,
        task: Any,
        loss_scaling: str,
        label_smoothing: float,
        teachers: str,
        distillation_weight: float,
        distillation_temperature: float,
        distill: str,
    ) -> None:
        super().__init__(task, loss_scaling, label_smoothing)
        if not 0 <= distillation_weight < math.inf:
            raise MuppetError(f"--distillation-weight is {distillation_weight}; give a weight of at least 0")
        if not 0 < distillation_temperature < math.inf:
            raise MuppetError(f"--distillation-temperature is {distillation_temperature}; give one above 0")
        if not task.prompted:
            raise MuppetError("--criterion muppet_distill trains prompts by their teachers: add --tune prompts")
        paths = [Path(path) for path in teachers.split(",") if path]
        #: plain objects, not submodules: their heads are neither trained nor saved
        self.teachers = load_teachers(paths, task.specs, task.heads, task.model)
        self.weight, self.temperature = distillation_weight, distillation_temperature
        self.of_logits, self.of_hidden = (distill in ("both", kind) for kind in ("logits", "hidden"))
        drops = any(getattr(task.model.args, f"{side}_layerdrop", 0) for side in ("encoder", "decoder"))
        if self.of_hidden and self.weight and drops:
            raise MuppetError(
                "--encoder-layerdrop and --decoder-layerdrop leave out layers whose states are to be compared: set "
                "them to 0, or --distill logits"
            )

    def predict(self, family: Family, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if not self.training or not self.weight:
            logits, losses, _ = super().predict(family, model, sample)
            return logits, losses, {key: torch.zeros(2, device=logits.device) for key in _LOGGED}
        with _without_traces(model):
            expected, their_states = self._outputs(family, model, sample, part=self._teacher(model, sample["dataset"]))
        logits, states = self._outputs(family, model, sample)
        differences = {}
        if self.of_logits:
            softened = partial(kl, temperature=self.temperature)
            differences["distill_logits"] = family.divergence(expected, logits, sample, softened)
        if self.of_hidden:
            differences["distill_hidden"] = _hidden_difference(family, their_states, states, sample)
        losses = family.loss(logits, sample, self.label_smoothing) + self.weight * sum(differences.values())
        nothing, one = logits.new_zeros(2, dtype=torch.float32), logits.new_ones((), dtype=torch.float32)
        log = {key: torch.stack([value.detach().mean(), one]) for key, value in differences.items()}
        return logits, losses, dict.fromkeys(_LOGGED, nothing) | log

    def _teacher(self, model: nn.Module, dataset: int) -> Part:
        """The teacher of a dataset, moved where the model is."""
        prompt, head = self.teachers[dataset]
        like = next(model.parameters())
        teacher = Part(prompt.to(like), None if head is None else head.to(like))
        self.teachers[dataset] = teacher
        return teacher

    def _outputs(self, family: Family, model: nn.Module, sample: Sample, **given: Any) -> tuple[Tensor, Hidden]:
        """One call of the model: the family's logits, and the layers' states where they are wanted."""
        states: Hidden = []

        def output(*args: Any, **inputs: Any) -> Tensor:
            if not self.of_hidden:
                return model(*args, **inputs, **given)
            result, hidden = model(*args, **inputs, **given, hidden=True)
            states.extend(hidden)
            return result

        return family.logits(output, sample, self.task.heads[sample["dataset"]]), states

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        for place, key in enumerate(_LOGGED):
            total, number = sum(log[key] for log in logging_outputs).tolist()
            if number:
                metrics.log_scalar(key, total / number, number, priority=40 + place, round=6)


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Call a model that trains as one that does not: without gradient and dropout, and so that the random numbers
    that it draws later are the same. (fairseq's layer drop draws some even where it drops nothing, on the CPU.)"""
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        model.train()


def _hidden_difference(family: Family, theirs: Hidden, ours: Hidden, sample: Sample) -> Tensor:
    """The mean squared difference of two models' states of each example, float32 ``[B]``."""
    total: Any = 0
    for (expected, is_token), (states, _) in zip(theirs, ours, strict=True):
        difference = (states.float() - expected.float()).square().mean(dim=2).masked_fill(~is_token, 0.0)
        tokens = family.by_example(is_token.sum(dim=1), sample)
        total = total + family.by_example(difference.sum(dim=1), sample) / tokens
    return total / len(ours)
