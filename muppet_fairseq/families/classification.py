"""Classification: a sentence or a pair of sentences and one of C classes; one head per dataset (§3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Family, FamilyDataset, Layout, Sample
from muppet_fairseq.metrics.confusion import CONFUSION_METRICS
from muppet_fairseq.models.heads import SentenceHead

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.spec import DatasetSpec


class ClassificationDataset(FamilyDataset):
    """``<s> input0 </s>`` or ``<s> input0 </s> </s> input1 </s>``, and a class index."""

    def __init__(self, data: BinarizedSplit, layout: Layout) -> None:
        super().__init__(data, layout)
        self.input0 = data.tokens("input0")
        self.input1 = data.tokens("input1") if data.spec.num_inputs == 2 else None
        self.labels = data.labels()
        data.require_equal_lengths(input0=self.input0, input1=self.input1, label=self.labels)
        sizes1 = None if self.input1 is None else self.input1.sizes
        self.lengths = self.joined_length(self.input0.sizes, sizes1)
        self.rows = np.ones(len(self.lengths), dtype=np.int32)
        self.example_of = np.arange(len(self.lengths))

    def __getitem__(self, index: int) -> dict[str, Any]:
        second = None if self.input1 is None else self.input1[index]
        row = self.join(self.input0[index], second)
        return {"id": index, "rows": [row], "label": int(self.labels[index])}

    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        return {"target": torch.tensor([example["label"] for example in examples])}


class Classification(Family):
    name = "classification"
    metric_names = tuple(CONFUSION_METRICS)

    def streams(self, num_inputs: int) -> dict[str, str]:
        return {f"input{i}": "tokens" for i in range(num_inputs)} | {"label": "label"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        if not any(text.strip() for text in example["inputs"]):
            return "its text is empty"
        if example["label"] not in labels:
            return f"its label is {example['label']!r}, not one of {', '.join(labels)}"
        return None

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        record: dict[str, list] = {"label": [labels.index(example["label"]) for example in examples]}
        for i in range(len(examples[0]["inputs"])):
            record[f"input{i}"] = tokenizer.encode_with_eos([example["inputs"][i] for example in examples])
        return record

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> ClassificationDataset:
        dataset = ClassificationDataset(data, layout)
        classes = len(data.spec.labels)
        wrong = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= classes))
        if len(wrong):
            raise MuppetError(
                f"{data.path('label')}: example {wrong[0]} has label {dataset.labels[wrong[0]]}, but the head "
                f"of {data.spec.name} has {classes} classes (0 to {classes - 1}); prepare the dataset again"
            )
        return dataset

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module]:
        return spec.head or spec.name, SentenceHead(dim, len(spec.labels), dropout)

    def logits(self, model: nn.Module, sample: Sample, head: str) -> Tensor:
        return model(**sample["net_input"], head=head)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), target, reduction="none")

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        return torch.full(logits.shape[:1], float(logits.shape[1]), device=logits.device)

    def num_statistics(self, spec: DatasetSpec) -> int:
        return len(spec.labels) ** 2

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Confusion counts, flat: entry ``gold * C + predicted``."""
        classes = logits.shape[1]
        cells = sample["target"] * classes + logits.argmax(dim=1)
        # one-hot and sum, not bincount: that one waits for the GPU
        return F.one_hot(cells, classes * classes).sum(dim=0)

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        classes = len(spec.labels)
        confusion = statistics.reshape(classes, classes)
        names = dict.fromkeys([spec.metric, "accuracy"])
        return {name: CONFUSION_METRICS[name](confusion) for name in names}
