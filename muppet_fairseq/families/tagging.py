"""Tagging: a sentence's words and a tag for each; one head per dataset. For fine-tuning only.

A word is tagged at its first token. What the model does not read, it does not tag: words beyond its last position,
and words that the tokenizer makes no token of. They get the tag :data:`NO_TAG`, which is none of the dataset's, and
so they count as wrong; no loss is computed for them.

The metric ``bracket_f1`` is for trees: the tags are those of :meth:`muppet_fairseq.trees.Tree.labels`, and the
examples carry the ``tree`` itself as text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Family, FamilyDataset, Layout, Sample, no_text, pad_rows
from muppet_fairseq.metrics.brackets import bracket_counts
from muppet_fairseq.metrics.chunks import chunk_counts, chunk_starts, tag_parts
from muppet_fairseq.metrics.jackknife import pseudo_values
from muppet_fairseq.models.heads import TokenHead
from muppet_fairseq.r3f import Divergence, symmetric_kl
from muppet_fairseq.trees import NO_LABEL, Tree, is_label

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit
    from muppet_fairseq.data.tokenizer import Encoding, Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec

#: the tag of a word that the model has not read
NO_TAG = NO_LABEL
#: in the streams: a word without a token, and a tag that the training examples do not have
_NONE = -1


class TaggingDataset(FamilyDataset):
    """``<s> tokens </s>``, where each word begins, and its tag."""

    def __init__(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> None:
        super().__init__(data, layout)
        self.training = training
        self.input0 = self.tokens("input0")
        self.word_starts = data.ints("word_starts")
        self.tags = data.ints("tags")
        raw = None if training else data.ints("raw")
        data.require_equal_lengths(input0=self.input0, word_starts=self.word_starts, tags=self.tags, raw=raw)
        self._check()
        if data.spec.metric == "bracket_f1" and (wrong := [tag for tag in data.spec.labels if not is_label(tag)]):
            raise MuppetError(
                f"{data.folder / 'dataset.json'}: the class {wrong[0][:60]!r} is no label of a tree, which the metric "
                "bracket_f1 is for; prepare the dataset again, or name another metric in a suite"
            )
        self.parts = tag_parts(data.spec.labels)

    def __len__(self) -> int:
        return len(self.input0)

    @property
    def lengths(self) -> np.ndarray:
        return self.joined_length(self.input0.sizes)

    def _check(self) -> None:
        again = "prepare the dataset again"
        wrong = np.flatnonzero(self.tags.sizes < 1)
        if len(wrong):
            raise MuppetError(f"{self.data.path('tags')}: example {wrong[0]} has no words; {again}")
        wrong = np.flatnonzero(self.tags.sizes != self.word_starts.sizes)
        if len(wrong):
            raise MuppetError(
                f"{self.data.path('tags')}: example {wrong[0]} has {self.tags.sizes[wrong[0]]} tags for "
                f"{self.word_starts.sizes[wrong[0]]} words; {again}"
            )
        example_of_word = np.repeat(np.arange(len(self.tags)), self.tags.sizes)
        tags, classes = self.tags.flat(), len(self.data.spec.labels)
        wrong = np.flatnonzero((tags < _NONE) | (tags >= classes))
        if len(wrong):
            raise MuppetError(
                f"{self.data.path('tags')}: example {example_of_word[wrong[0]]} has tag {tags[wrong[0]]}, but the head "
                f"of {self.data.spec.name} has {classes} classes (0 to {classes - 1}); {again}"
            )
        starts, tokens = self.word_starts.flat(), self.input0.sizes[example_of_word] - 1
        wrong = np.flatnonzero((starts < _NONE) | (starts >= tokens))
        if len(wrong):
            raise MuppetError(
                f"{self.data.path('word_starts')}: in example {example_of_word[wrong[0]]} a word begins at token "
                f"{starts[wrong[0]]}, but there are {tokens[wrong[0]]}; {again}"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.join(self.input0[index])
        # <s> comes first; a word's token is neither <s> nor </s>
        starts = self.word_starts[index] + 1
        starts = np.where(starts < len(row) - 1, starts, 0)
        item = {"id": index, "rows": [row], "starts": starts, "tags": self.tags[index]}
        if not self.training:
            item["example"] = self.data.raw(index)
            if len(item["example"]["tags"]) != len(item["tags"]):
                raise MuppetError(
                    f"{self.data.path('raw')}.bin: example {index} has {len(item['example']['tags'])} tags, but "
                    f"{len(item['tags'])} are stored; prepare the dataset again"
                )
        return item

    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        """``starts`` and ``target``, each ``[B, W]``: the column of a word's first token, 0 for one that is not read;
        and its tag, -1 for one that is unknown. Then ``num_words`` ``[B]``, and ``parts`` of the labels for counting
        chunks, or ``examples`` as they are read, where they are at hand."""
        sample: Sample = {
            "starts": pad_rows([example["starts"] for example in examples], 0),
            "target": pad_rows([example["tags"] for example in examples], _NONE),
            "num_words": torch.tensor([len(example["tags"]) for example in examples]),
        }
        if self.training:
            return sample | {"parts": self.parts}
        return sample | {"examples": [example["example"] for example in examples]}


class Tagging(Family):
    name = "tagging"
    gold = labels_key = "tags"
    metric_names = ("accuracy", "chunk_f1", "bracket_f1")
    num_labels = (1, 100_000)

    def streams(self, num_inputs: int) -> dict[str, str]:
        return {"input0": "tokens", "word_starts": "ints", "tags": "ints"}

    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        words, tags = example["words"], example["tags"]
        if not words:
            return "it has no words"
        if fault := no_text(*words, *tags):
            return fault
        if len(words) != len(tags):
            return f"it has {len(words)} words, but {len(tags)} tags"
        for number, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
            if word.split() != [word]:
                return f"its word {number} is {word!r}, empty or with white space"
            if all(unicodedata.category(character) in ("Cc", "Cf") for character in word):
                return f"its word {number} is {word!r}: control characters only, of which there may be no token"
            if tag == NO_TAG:
                return f"its word {number} has no tag"
            if labels and tag not in labels:
                return f"its word {number} has the tag {tag!r}, which is none of the {len(labels)} that are known"
        return _tree_fault(example) if "tree" in example else None

    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        encodings = tokenizer.encode([" ".join(example["words"]) for example in examples])
        number_of = {label: number for number, label in enumerate(labels)}
        return {
            "input0": [tokenizer.with_eos(encoding.ids) for encoding in encodings],
            "word_starts": [
                first_tokens(encoding, example["words"]) for encoding, example in zip(encodings, examples, strict=True)
            ],
            "tags": [
                np.array([number_of.get(tag, _NONE) for tag in example["tags"]], dtype=np.int32) for example in examples
            ],
        }

    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> TaggingDataset:
        return TaggingDataset(data, layout, training=training)

    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module]:
        return spec.head or spec.name, TokenHead(dim, len(spec.labels), dropout)

    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        """``[B, W, C]``; of a word that is not read, those of ``<s>``, which nothing here looks at."""
        scores = model(**sample["net_input"], head=head)
        return scores.gather(1, sample["starts"].unsqueeze(2).expand(-1, -1, scores.shape[2]))

    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        """Mean of the words' cross entropies."""
        target = sample["target"]
        losses = F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=_NONE, reduction="none")
        return _mean(losses, (sample["starts"] > 0) & (target != _NONE))

    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        return torch.full(logits.shape[:1], float(logits.shape[2]), device=logits.device)

    def divergence(self, first: Tensor, second: Tensor, sample: Sample, between: Divergence = symmetric_kl) -> Tensor:
        """Mean of the words', as the loss."""
        return _mean(between(first, second, 2), sample["starts"] > 0)

    def num_statistics(self, spec: DatasetSpec) -> int:
        return 2 if spec.metric == "accuracy" else 5

    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Right words and words; then right, predicted and gold chunks or constituents.

        The constituents are 0 when training: a tree is decoded on the CPU, and the gold one is not at hand.
        """
        if "examples" in sample:
            counts = _counts(_tags(logits, sample, spec), sample["examples"], spec)
            return torch.tensor(counts.sum(axis=0), device=logits.device)
        target, predicted = sample["target"], logits.argmax(dim=2)
        is_read = sample["starts"] > 0
        right = (is_read & (predicted == target)).sum()
        counts = torch.stack([right, sample["num_words"].sum()])
        if spec.metric == "accuracy":
            return counts
        if spec.metric == "bracket_f1":
            return F.pad(counts, (0, 3))
        gold = sample["parts"][target] * (target != _NONE).unsqueeze(2)
        return torch.cat([counts, chunk_counts(gold, sample["parts"][predicted] * is_read.unsqueeze(2))])

    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        """The F1 of constituents is left out where there are none, as when training."""
        right, words, *spans = statistics.tolist()
        values = {"accuracy": right / words}
        if spans and (spec.metric == "chunk_f1" or spans[2]):
            both = spans[1] + spans[2]
            values = {spec.metric: 2 * spans[0] / both if both else 0.0} | values
        return values

    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        """``tags``, and where they make a tree, ``tree``: its text, in which parts of speech are unknown."""
        predictions: list[dict[str, Any]] = [
            {"tags": tags} for tags in _tags(self.logits(model, sample, head), sample, spec)
        ]
        if spec.metric == "bracket_f1":
            for prediction, example in zip(predictions, sample["examples"], strict=True):
                prediction["tree"] = Tree.from_labels(prediction["tags"], example["words"]).text()
        return predictions

    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        counts = _counts([prediction["tags"] for prediction in predictions], examples, spec)
        return self._all_metrics(counts.sum(axis=0), spec)

    def example_scores(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> list[float]:
        counts = _counts([prediction["tags"] for prediction in predictions], examples, spec)
        total = counts.sum(axis=0)
        whole = self._all_metrics(total, spec)[spec.metric]
        if len(counts) == 1:  # without it there is nothing to judge
            return [whole]
        return pseudo_values(whole, np.array([self._all_metrics(total - own, spec)[spec.metric] for own in counts]))

    def _all_metrics(self, counts: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        """:meth:`metrics`, and 0 for the F1 of constituents where there are none."""
        return {spec.metric: 0.0} | self.metrics(counts, spec)


def first_tokens(encoding: Encoding, words: Sequence[str]) -> np.ndarray:
    """Return the first token of each word, int32 ``[words]``, of ``words`` with one blank between them.

    It is the first token that covers one of the word's characters; -1 where there is none.
    """
    sizes = np.array([len(word) for word in words])
    ends = np.cumsum(sizes + 1) - 1
    first = np.searchsorted(encoding.offsets[:, 1], ends - sizes, side="right")
    # past the last token stands one that begins after every word
    begins = np.append(encoding.offsets[:, 0], ends[-1])
    return np.where(begins[first] < ends, first, _NONE).astype(np.int32)


def _tree_fault(example: dict[str, Any]) -> str | None:
    try:
        tree = Tree.parse(example["tree"])
    except ValueError as error:
        return f"its tree cannot be read: {error}"
    if list(tree.words) != list(example["words"]):
        return "its tree has other words"
    if tree.labels() != list(example["tags"]):
        return "its tags are not the labels of its tree"
    return None


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the words that count, ``[B]``; 0 where there are none."""
    return (values * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _tags(logits: Tensor, sample: Sample, spec: DatasetSpec) -> list[list[str]]:
    """The predicted tag of every word of every example."""
    predicted = logits.argmax(dim=2).masked_fill(sample["starts"] == 0, _NONE).tolist()
    names = [*spec.labels, NO_TAG]  # the last one is number -1
    counts = sample["num_words"].tolist()
    return [[names[tag] for tag in tags[:count]] for tags, count in zip(predicted, counts, strict=True)]


def _counts(tags: Sequence[Sequence[str]], examples: Sequence[dict[str, Any]], spec: DatasetSpec) -> np.ndarray:
    """What :meth:`Tagging.statistics` adds up, of tags by name, int64 ``[examples, num_statistics]``."""
    pairs = [(ours, example["tags"]) for ours, example in zip(tags, examples, strict=True)]
    right = [sum(own == gold for own, gold in zip(ours, golds, strict=True)) for ours, golds in pairs]
    sizes = np.array([len(golds) for _, golds in pairs])
    words = np.stack([right, sizes], axis=1)
    if spec.metric == "accuracy":
        return words
    if spec.metric == "chunk_f1":
        # one long sentence: the word between two is in no chunk
        ours, golds = ([tag for one in side for tag in (*one, "O")] for side in zip(*pairs, strict=True))
        both = tag_parts([*golds, *ours]).reshape(2, 1, -1, 2)
        starts = chunk_starts(gold=both[0], predicted=both[1])[:, 0].numpy()
        ends = np.cumsum(sizes + 1)
        spans = np.add.reduceat(starts, ends - sizes - 1, axis=1, dtype=np.int64).T
    else:
        spans = [bracket_counts(*_trees(ours, example, spec)) for ours, example in zip(tags, examples, strict=True)]
    return np.hstack([words, spans])


def _trees(tags: Sequence[str], example: dict[str, Any], spec: DatasetSpec) -> tuple[Tree, Tree]:
    """An example's gold tree and the predicted one."""
    if "tree" not in example:
        raise MuppetError(f"{spec.name}: an example has no tree to compare with; bracket_f1 is for trees alone")
    gold = Tree.parse(example["tree"])
    return gold, Tree.from_labels(tags, gold.words)
