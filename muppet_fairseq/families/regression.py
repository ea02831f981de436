"""Regression: a sentence or a pair of sentences and a number; one head per dataset. For fine-tuning only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from muppet_fairseq.families.base import Family, Layout, Sample
from muppet_fairseq.families.classification import SentencePairDataset, encode_inputs, input_streams, inputs_fault
from muppet_fairseq.metrics.correlation import pearson, pearson_without_each, spearman, spearman_without_each
from muppet_fairseq.metrics.jackknife import pseudo_values
from muppet_fairseq.models.heads import SentenceHead
from muppet_fairseq.r3f import Divergence, symmetric_kl

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec

#: of a number to predict, in either direction: the squares of more are no good in single precision
LARGEST_VALUE = 1e9


class RegressionDataset(SentencePairDataset):
    """``<s> input0 </s>`` or ``<s> input0 </s> </s> input1 </s>``, and a number."""

    def read_labels(self) -> np.ndarray:
        # a file of text cannot be mapped: 4 bytes an example are kept
        return self.data.values()


class Regression(Family):
    name = "regression"
    gold = "label"
    metric_names = ("pearson", "spearman")

    def streams(self, num_inputs: int) -> dict[str, str]:
        return input_streams(num_inputs) | {"label": "value"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        if not abs(float(example["label"])) <= LARGEST_VALUE:
            return f"its label is {example['label']}, no number up to {LARGEST_VALUE:g}"
        return inputs_fault(example["inputs"])

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        return encode_inputs(examples, tokenizer) | {"label": [example["label"] for example in examples]}

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> RegressionDataset:
        return RegressionDataset(data, layout)

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module]:
        return spec.head or spec.name, SentenceHead(dim, 1, dropout)

    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        """``[B]``: the predicted numbers."""
        return model(**sample["net_input"], head=head).squeeze(1)

    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        return (logits.float() - sample["target"]).square()

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        """1: there is nothing to scale by (the criterion's factor is then 1)."""
        return torch.ones_like(logits, dtype=torch.float32)

    def divergence(self, first: Tensor, second: Tensor, sample: Sample, between: Divergence = symmetric_kl) -> Tensor:
        """The squared difference, whatever ``between``: the symmetric KL of normal distributions with these means and
        variance 1; and, of a teacher's number, what the loss makes of a label."""
        return (first.float() - second.float()).square()

    def num_statistics(self, spec: DatasetSpec) -> int:
        return 6

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Number, sums, sums of squares and of products: what Pearson's correlation is made of."""
        x, y = logits.float(), sample["target"].float()
        sums = [torch.ones_like(x), x, y, x * x, y * y, x * y]
        return torch.stack([values.sum() for values in sums])

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        """Pearson only: ranks do not add up, so Spearman's is for :meth:`evaluate`."""
        count, x, y, xx, yy, xy = statistics.astype(np.float64)
        spreads = count * xx - x * x, count * yy - y * y
        # the sums are float32: a spread this small beside the mean is their rounding
        if spreads[0] <= 1e-5 * count * xx or spreads[1] <= 1e-5 * count * yy:
            return {"pearson": 0.0}
        return {"pearson": float(np.clip((count * xy - x * y) / np.sqrt(spreads[0] * spreads[1]), -1, 1))}

    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        return [{"value": value} for value in self.logits(model, sample, head).float().tolist()]

    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        predicted, gold = _numbers(predictions, examples)
        values = {"pearson": pearson(predicted, gold), "spearman": spearman(predicted, gold)}
        return {name: values[name] for name in dict.fromkeys([spec.metric, *values])}

    def example_scores(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> list[float]:
        """Spearman's take a time that grows with the square of the number of examples."""
        predicted, gold = _numbers(predictions, examples)
        if spec.metric == "spearman":
            return pseudo_values(spearman(predicted, gold), spearman_without_each(predicted, gold))
        return pseudo_values(pearson(predicted, gold), pearson_without_each(predicted, gold))


def _numbers(
    predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and gold numbers, each ``[n]``."""
    predicted = np.array([prediction["value"] for prediction in predictions])
    return predicted, np.array([example["label"] for example in examples])
