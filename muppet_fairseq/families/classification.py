"""Classification: a sentence or a pair of sentences and one of C classes; one head per dataset (§3.5).

The metric ``multirc`` is SuperGLUE's for MultiRC, whose examples are candidate answers and name their question in
``question``: F1 of the right answers, and the share of questions all of whose answers are judged right. The F1 is over
answers, so its example scores are of answers, too. Those of one question depend on each other: for a test, add them up
by question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import BLOCK, Family, FamilyDataset, Layout, Sample, no_text
from muppet_fairseq.metrics.confusion import CONFUSION_METRICS, f1
from muppet_fairseq.metrics.jackknife import pseudo_values
from muppet_fairseq.metrics.multirc import question_exact_match
from muppet_fairseq.models.heads import SentenceHead

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit, ClassIndices
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec


class SentencePairDataset(FamilyDataset):
    """``<s> input0 </s>`` or ``<s> input0 </s> </s> input1 </s>``, and what belongs to it."""

    def __init__(self, data: BinarizedSplit, layout: Layout) -> None:
        super().__init__(data, layout)
        self.input0 = self.tokens("input0")
        self.input1 = self.tokens("input1") if data.spec.num_inputs == 2 else None
        self.labels = self.read_labels()
        data.require_equal_lengths(input0=self.input0, input1=self.input1, label=self.labels)

    def __len__(self) -> int:
        return len(self.input0)

    @property
    def lengths(self) -> np.ndarray:
        return self.joined_length(self.input0.sizes, None if self.input1 is None else self.input1.sizes)

    @abstractmethod
    def read_labels(self) -> np.ndarray | ClassIndices:
        """Return the gold label of each example, ``[examples]``."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        second = None if self.input1 is None else self.input1[index]
        return {"id": index, "rows": [self.join(self.input0[index], second)], "label": self.labels[index].item()}

    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        return {"target": torch.tensor([example["label"] for example in examples])}


def input_streams(num_inputs: int) -> dict[str, str]:
    """The streams of one or two input texts."""
    return {f"input{i}": "tokens" for i in range(num_inputs)}


def inputs_fault(inputs: Sequence[Any]) -> str | None:
    """Say why an example's texts cannot be used, or return None."""
    fault = no_text(*inputs)
    if fault is None and not "".join(inputs).strip():
        return "its text is empty"
    return fault


def encode_inputs(examples: list[dict[str, Any]], tokenizer: Tokenizer) -> dict[str, list]:
    """Encode the texts of each example for :func:`input_streams`."""
    texts = zip(*(example["inputs"] for example in examples), strict=True)
    return {f"input{i}": tokenizer.encode_with_eos(column) for i, column in enumerate(texts)}


class ClassificationDataset(SentencePairDataset):
    """A text or a pair, and a class index."""

    def read_labels(self) -> ClassIndices:
        return self.data.labels()


class Classification(Family):
    name = "classification"
    gold = "label"
    metric_names = (*CONFUSION_METRICS, "multirc")
    num_labels = (2, 2000)  # of more, the confusion counts would outgrow the model

    def streams(self, num_inputs: int) -> dict[str, str]:
        return input_streams(num_inputs) | {"label": "label"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        if example["label"] not in labels:
            return f"its label is {example['label']!r}, not one of {', '.join(labels)}"
        return inputs_fault(example["inputs"])

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        return encode_inputs(examples, tokenizer) | {"label": [labels.index(example["label"]) for example in examples]}

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> ClassificationDataset:
        dataset = ClassificationDataset(data, layout)
        classes = len(data.spec.labels)
        for begin in range(0, len(dataset), BLOCK):
            labels = dataset.labels[begin : begin + BLOCK]
            wrong = np.flatnonzero((labels < 0) | (labels >= classes))
            if len(wrong):
                raise MuppetError(
                    f"{data.path('label')}: example {begin + wrong[0]} has label {labels[wrong[0]]}, but the head "
                    f"of {data.spec.name} has {classes} classes (0 to {classes - 1}); prepare the dataset again"
                )
        return dataset

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module]:
        return spec.head or spec.name, SentenceHead(dim, len(spec.labels), dropout)

    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        return model(**sample["net_input"], head=head)

    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits.float(), sample["target"], reduction="none")

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        return torch.full(logits.shape[:1], float(logits.shape[1]), device=logits.device)

    def num_statistics(self, spec: DatasetSpec) -> int:
        return len(spec.labels) ** 2

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Confusion counts, flat: entry ``gold * C + predicted``."""
        classes = logits.shape[1]
        cells = sample["target"] * classes + logits.argmax(dim=1)
        # not bincount, which waits for the GPU; a one-hot row an example may need much memory
        return cells.new_zeros(classes * classes).scatter_add_(0, cells, torch.ones_like(cells))

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        classes = len(spec.labels)
        return _confusion_metrics(statistics.reshape(classes, classes), spec)

    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        shares = self.logits(model, sample, head).float().softmax(dim=1)
        best = shares.argmax(dim=1).tolist()
        return [
            {"label": spec.labels[label], "probabilities": dict(zip(spec.labels, row, strict=True))}
            for label, row in zip(best, shares.tolist(), strict=True)
        ]

    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        metrics = _confusion_metrics(_confusion(_cells(predictions, examples, spec), spec), spec)
        if spec.metric == "multirc":
            right = [p["label"] == e["label"] for p, e in zip(predictions, examples, strict=True)]
            metrics["em"] = question_exact_match([example["question"] for example in examples], right)
        return metrics

    def example_scores(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> list[float]:
        """All examples of a cell of the confusion counts have the same score."""
        if spec.metric == "accuracy":  # a mean: 0 and 1 without rounding
            return super().example_scores(predictions, examples, spec)
        _, metric = _main_metric(spec)
        cells = _cells(predictions, examples, spec)
        confusion = _confusion(cells, spec)
        whole = metric(confusion)
        distinct, place = np.unique(cells, return_inverse=True)
        without = []
        for cell in distinct:
            confusion.flat[cell] -= 1
            without.append(metric(confusion))
            confusion.flat[cell] += 1
        return pseudo_values(whole, np.array(without)[place])


def _cells(predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec) -> list[int]:
    """The entry of the flat confusion counts (:meth:`Classification.statistics`) that each example is counted in."""
    number = spec.labels.index
    both = zip(predictions, examples, strict=True)
    return [number(example["label"]) * len(spec.labels) + number(prediction["label"]) for prediction, example in both]


def _confusion(cells: Sequence[int], spec: DatasetSpec) -> np.ndarray:
    classes = len(spec.labels)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _main_metric(spec: DatasetSpec) -> tuple[str, Callable[[np.ndarray], float]]:
    """The first metric's name, and what computes it from confusion counts."""
    return ("f1a", f1) if spec.metric == "multirc" else (spec.metric, CONFUSION_METRICS[spec.metric])


def _confusion_metrics(confusion: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
    name, metric = _main_metric(spec)
    return {name: metric(confusion)} | {"accuracy": CONFUSION_METRICS["accuracy"](confusion)}
