"""Summarization, and all writing of a text from another: the model's decoder and output layer as they are (§3.5).

The encoder reads ``<s> source </s>``; the decoder writes ``<s> target </s>`` after a ``</s>``, as BART was trained.
The loss of an example is the label-smoothed cross entropy, averaged over its tokens; ``n(i)`` is the vocabulary's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.families.base import Family, FamilyDataset, Layout, Sample
from muppet_fairseq.metrics.rouge import ROUGE_NAMES, rouge
from muppet_fairseq.r3f import Divergence, symmetric_kl

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec


class SummarizationDataset(FamilyDataset):
    """A row ``<s> source </s>`` for the encoder, and ``<s> target </s>`` for the decoder to write."""

    def __init__(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> None:
        super().__init__(data, layout)
        self.training = training
        self.source = self.tokens("source")
        self.target = self.tokens("target")
        raw = None if training else data.ints("raw")
        data.require_equal_lengths(source=self.source, target=self.target, raw=raw)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray:
        # as fairseq counts pairs: the longer of the two
        return self.joined_length(np.maximum(self.source.sizes, self.target.sizes))

    @property
    def written(self) -> np.ndarray:
        return self.joined_length(self.target.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"id": index, "rows": [self.join(self.source[index])], "target": self.join(self.target[index])}
        if not self.training:
            item["reference"] = self.data.raw(index)["target"]
        return item

    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        target = self.padded([example["target"] for example in examples])
        previous = self.padded([np.append(self.layout.eos, example["target"][:-1]) for example in examples])
        # where a token is predicted, in the flattened [B, U]; on the CPU, where it costs no wait
        predicted = (target != self.layout.pad).flatten().nonzero().squeeze(1)
        sample: Sample = {
            "target": target.flatten()[predicted],
            "predicted": predicted,
            "prev_output_tokens": previous,
            "target_lengths": torch.tensor([len(example["target"]) for example in examples]),
        }
        if not self.training:
            sample["references"] = [example["reference"] for example in examples]
        return sample


class Summarization(Family):
    name = "summarization"
    gold = "target"
    metric_names = ("rouge2", "rouge1", "rougeL")
    generates = True

    def streams(self, num_inputs: int) -> dict[str, str]:
        return {"source": "tokens", "target": "tokens"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        for side in ("source", "target"):
            if not example[side].strip():
                return f"its {side} is empty"
        return None

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        return {
            side: tokenizer.encode_with_eos([example[side] for example in examples]) for side in ("source", "target")
        }

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> SummarizationDataset:
        return SummarizationDataset(data, layout, training=training)

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> None:
        return None

    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        """``[tokens of all targets, vocabulary]``: padding is not projected to the vocabulary."""
        return model(
            **sample["net_input"], prev_output_tokens=sample["prev_output_tokens"], predicted=sample["predicted"]
        )

    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        losses = F.cross_entropy(logits.float(), sample["target"], reduction="none", label_smoothing=label_smoothing)
        return _mean_by_example(losses, sample)

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        return torch.full_like(sample["target_lengths"], logits.shape[1], dtype=torch.float32)

    def divergence(self, first: Tensor, second: Tensor, sample: Sample, between: Divergence = symmetric_kl) -> Tensor:
        return _mean_by_example(between(first, second, 1), sample)

    def num_statistics(self, spec: DatasetSpec) -> int:
        return 3 + len(ROUGE_NAMES)

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Tokens predicted right from the right beginning, and tokens; the rest is :meth:`rouge_statistics`."""
        right = (logits.argmax(dim=1) == sample["target"]).sum()
        return torch.cat(
            [right[None], torch.full_like(right[None], len(logits)), right.new_zeros(1 + len(ROUGE_NAMES))]
        )

    def rouge_statistics(self, texts: Sequence[str], sample: Sample) -> Tensor:
        """What generated ``texts`` add to :meth:`statistics`: examples, and sums of their ROUGE."""
        scores = [rouge(text, reference) for text, reference in zip(texts, sample["references"], strict=True)]
        return torch.tensor([0, 0, len(scores), *np.sum(scores, axis=0)])

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        """ROUGE where texts were generated (the dataset's metric first), and the accuracy of single tokens."""
        right, tokens, generated, *sums = statistics
        metrics = {"token_accuracy": float(right / tokens)}
        if generated:
            metrics = _rouge_metrics(np.array(sums) / generated, spec) | metrics
        return metrics

    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        assert generator is not None
        rows = sample["net_input"]
        return [{"text": text} for text in generator(model, rows["src_tokens"], rows.get("prompt"))]

    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        scores = [rouge(p["text"], e["target"]) for p, e in zip(predictions, examples, strict=True)]
        return _rouge_metrics(np.mean(scores, axis=0), spec)


def _rouge_metrics(means: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
    by_name = dict(zip(ROUGE_NAMES, means.tolist(), strict=True))
    return {name: by_name[name] for name in dict.fromkeys([spec.metric, *ROUGE_NAMES])}


def _mean_by_example(values: Tensor, sample: Sample) -> Tensor:
    """Average the values ``[tokens of all targets]`` over the tokens of each example, ``[B]``."""
    rows = sample["prev_output_tokens"]
    padded = values.new_zeros(rows.numel()).index_copy(0, sample["predicted"], values)
    return padded.view(rows.shape).sum(dim=1) / sample["target_lengths"]
