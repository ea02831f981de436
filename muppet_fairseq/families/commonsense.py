"""Commonsense: a context and two or more choices, one of them right; one head for the family (§3.5).

Every choice is scored by the same head on its own row; the loss ranks the choices of a question against
each other (sentence ranking, Table 2). All choices of all examples of a sub-batch are rows of one batch,
so they go through the encoder in one forward pass, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Family, FamilyDataset, Layout, RunningSum, Sample, no_text
from muppet_fairseq.models.heads import SentenceHead

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec


class CommonsenseDataset(FamilyDataset):
    """One row ``<s> context </s> </s> choice </s>`` for each choice, and the index of the right one."""

    def __init__(self, data: BinarizedSplit, layout: Layout) -> None:
        super().__init__(data, layout)
        self.context = self.tokens("input0")
        self.choices = self.tokens("input1")
        self.answer = data.scalars("answer")
        self.num_choices = data.scalars("num_choices")
        data.require_equal_lengths(input0=self.context, answer=self.answer, num_choices=self.num_choices)
        self._check()
        self.first_choice = RunningSum(len(self), lambda begin, end: self.num_choices[begin:end])

    def __len__(self) -> int:
        return len(self.context)

    @property
    def rows(self) -> np.ndarray:
        return self.num_choices

    @property
    def lengths(self) -> np.ndarray:
        first = np.cumsum(self.num_choices, dtype=np.int64) - self.num_choices
        return self.joined_length(self.context.sizes, np.maximum.reduceat(self.choices.sizes, first))

    def _check(self) -> None:
        path, again = self.data.path("num_choices"), "prepare the dataset again"
        wrong = np.flatnonzero(self.rows < 2)
        if len(wrong):
            raise MuppetError(
                f"{path}: example {wrong[0]} has {self.rows[wrong[0]]} choices, at least 2 are needed; {again}"
            )
        if self.rows.sum(dtype=np.int64) != len(self.choices):
            raise MuppetError(
                f"{path}: the counts add up to {self.rows.sum(dtype=np.int64)} choices, but input1 holds "
                f"{len(self.choices)}; {again}"
            )
        wrong = np.flatnonzero((self.answer < 0) | (self.answer >= self.rows))
        if len(wrong):
            raise MuppetError(
                f"{self.data.path('answer')}: example {wrong[0]} names choice {self.answer[wrong[0]]} of "
                f"{self.rows[wrong[0]]} (counted from 0); {again}"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        context, first = self.context[index], self.first_choice.before(index)
        rows = [self.join(context, self.choices[first + i]) for i in range(self.rows[index])]
        return {"id": index, "rows": rows, "answer": int(self.answer[index])}

    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        counts = torch.tensor([len(example["rows"]) for example in examples])
        # the cell of [B, most choices] that each row's score goes to; on the CPU, where it costs no wait
        is_choice = torch.arange(int(counts.max())) < counts[:, None]
        return {
            "target": torch.tensor([example["answer"] for example in examples]),
            "is_choice": is_choice,
            "cell": is_choice.flatten().nonzero().squeeze(1),
        }


class Commonsense(Family):
    name = "commonsense"
    gold = "answer"
    metric_names = ("accuracy",)

    def streams(self, num_inputs: int) -> dict[str, str]:
        return {"input0": "tokens", "input1": "tokens", "num_choices": "scalar", "answer": "scalar"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        choices, answer = example["choices"], example["answer"]
        if not isinstance(choices, list):
            return f"its choices are {str(choices)[:40]!r}, no list"
        if len(choices) < 2:
            return f"it has {len(choices)} choices, at least 2 are needed"
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            return f"its answer is choice {answer!r} of {len(choices)} (counted from 0)"
        return no_text(example["context"], *choices)

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        return {
            "input0": tokenizer.encode_with_eos([example["context"] for example in examples]),
            "input1": tokenizer.encode_with_eos([text for example in examples for text in example["choices"]]),
            "num_choices": [len(example["choices"]) for example in examples],
            "answer": [example["answer"] for example in examples],
        }

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> CommonsenseDataset:
        return CommonsenseDataset(data, layout)

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module]:
        return spec.head or self.name, SentenceHead(dim, 1, dropout)

    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        scores = model(**sample["net_input"], head=head).squeeze(1)
        is_choice = sample["is_choice"]
        logits = scores.new_full((is_choice.numel(),), float("-inf"))
        return logits.index_copy(0, sample["cell"], scores).view(is_choice.shape)

    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits.float(), sample["target"], reduction="none")

    def by_example(self, values: Tensor, sample: Sample) -> Tensor:
        examples, most = sample["is_choice"].shape
        return values.new_zeros(examples).index_add(0, sample["cell"] // most, values)

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        return sample["is_choice"].sum(dim=1).float()

    def num_statistics(self, spec: DatasetSpec) -> int:
        return 2

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Right answers and examples."""
        right = (logits.argmax(dim=1) == sample["target"]).sum()
        return torch.stack([right, torch.full_like(right, len(logits))])

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        return {"accuracy": float(statistics[0] / statistics[1])}

    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        logits = self.logits(model, sample, head).float()
        shares = logits.softmax(dim=1).tolist()
        counts, best = sample["is_choice"].sum(dim=1).tolist(), logits.argmax(dim=1).tolist()
        return [
            {"choice": choice, "probabilities": row[:count]}
            for choice, row, count in zip(best, shares, counts, strict=True)
        ]

    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        right = [p["choice"] == e["answer"] for p, e in zip(predictions, examples, strict=True)]
        return {"accuracy": float(np.mean(right))}
