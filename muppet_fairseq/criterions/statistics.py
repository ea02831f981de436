"""What a training or validation step counts, for every dataset of the suite, in one vector that adds up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import DatasetSpec

#: before each dataset's own counts: sub-batches, and the sums of their mean losses
_COMMON = ("sub_batches", "loss", "scaled_loss")


class StatisticsLayout:
    """Where each dataset's counts lie in the vector, and what they mean.

    The vector has the same length on every worker, whichever datasets a worker has seen.
    """

    def __init__(self, specs: Sequence[DatasetSpec]) -> None:
        self.specs = list(specs)
        widths = [len(_COMMON) + FAMILIES[spec.family].num_statistics(spec) for spec in self.specs]
        ends = np.cumsum(widths).tolist()
        self.slices = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        self.width = ends[-1]

    def row(self, dataset: int, *, loss: Tensor, scaled_loss: Tensor, counts: Tensor) -> Tensor:
        """The vector (float32) for one sub-batch of ``dataset``."""
        one = torch.ones((), device=counts.device)
        common = torch.stack([one, loss.detach().float(), scaled_loss.detach().float()])
        vector = torch.zeros(self.width, device=counts.device)
        vector[self.slices[dataset]] = torch.cat([common, counts.float()])
        return vector

    def counts(self, vector: Tensor, dataset: int) -> Tensor:
        """The counts of ``dataset`` in a vector: a view."""
        return vector[self.slices[dataset]][len(_COMMON) :]

    def losses(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sub-batches, and sums of their mean loss and scaled loss: each ``[datasets]``."""
        common = np.stack([vector[part][: len(_COMMON)] for part in self.slices])
        return common[:, 0], common[:, 1], common[:, 2]

    def summary(self, vector: np.ndarray) -> dict[str, float]:
        """Losses and metrics of the datasets that ``vector`` has seen, of their families, and of all.

        The keys are those that :meth:`muppet_fairseq.tasks.muppet.MuppetTask.reduce_metrics` documents.
        """
        values: dict[str, list[float]] = defaultdict(list)
        sub_batches, _, scaled = self.losses(vector)
        for number, spec in enumerate(self.specs):
            if not sub_batches[number]:
                continue
            family, counts = FAMILIES[spec.family], vector[self.slices[number]]
            values[f"{spec.name}_loss"] = [scaled[number] / sub_batches[number]]
            for place, (name, value) in enumerate(family.metrics(counts[len(_COMMON) :], spec).items()):
                values[f"{spec.name}_{name}"] = [value]
                values[f"{family.name}_{name}"].append(value)
                values[name].append(value)
                if place == 0:
                    values["score"].append(value)
        for name in {spec.family for spec in self.specs}:
            own = [number for number, spec in enumerate(self.specs) if spec.family == name]
            if sub_batches[own].sum():
                values[f"{name}_loss"] = [scaled[own].sum() / sub_batches[own].sum()]
        return {key: float(np.mean(value)) for key, value in values.items()}
