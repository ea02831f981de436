"""The interface of a task family, and what all families share.

A family is one file beside this one. It says, for one kind of supervised task, how an example is stored
(:meth:`Family.streams`, :meth:`Family.encode`), how it is laid out for the encoder
(:class:`FamilyDataset`), which head predicts (:meth:`Family.head`), what is minimised
(:meth:`Family.loss`), over how many predictions that loss ranges (:meth:`Family.num_predictions`, the
``n(i)`` of MUPPET's Eq. 1), how success is counted while training (:meth:`Family.statistics`,
:meth:`Family.metrics`), and what is predicted and how that is judged afterwards (:meth:`Family.predict`,
:meth:`Family.evaluate`, :meth:`Family.example_scores`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.r3f import Divergence, symmetric_kl

if TYPE_CHECKING:
    from muppet_fairseq.data.binarized import BinarizedSplit, IndexedInts
    from muppet_fairseq.data.tokenizer import Tokenizer
    from muppet_fairseq.generation import Generator
    from muppet_fairseq.spec import DatasetSpec

Sample = dict[str, Any]

#: <s>, </s> </s>, </s>, and two tokens of each part: with less a row says nothing
MIN_POSITIONS = 8
#: examples that are looked at at a time, so that the memory it takes does not grow with their number
BLOCK = 1 << 14


@dataclass(frozen=True)
class Layout:
    """What every family needs to lay examples out: dictionary indices, and lengths in tokens."""

    bos: int
    pad: int
    eos: int
    vocabulary: int
    max_positions: int = 512
    #: tokens that two neighbouring windows of a long passage share
    window_overlap: int = 128

    def __post_init__(self) -> None:
        if self.max_positions < MIN_POSITIONS:
            raise MuppetError(f"--max-positions is {self.max_positions}; give at least {MIN_POSITIONS}")
        if self.window_overlap < 0:
            raise MuppetError(f"--window-overlap is {self.window_overlap}; give at least 0")


class FamilyDataset(ABC):
    """The examples of one split of one dataset, laid out as rows of tokens.

    An item has one row (a sentence or a pair), or several that are predicted together: the choices of a
    question, the windows of a passage. An example is one item, but for passages read in windows when training.

    Nothing that is kept grows with the number of examples: each worker, and each process that loads data for it,
    would have a copy. What is as long as a dataset is memory-mapped, or computed when it is asked for.
    """

    def __init__(self, data: BinarizedSplit, layout: Layout) -> None:
        self.data = data
        self.layout = layout
        # as arrays, for they are put together with others
        self.bos, self.eos = np.array([layout.bos]), np.array([layout.eos])

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """Tokens in each item's longest row, int32 ``[items]``; computed anew each time."""

    @property
    def rows(self) -> np.ndarray:
        """Rows of each item, int32 ``[items]``; here one, which takes no memory."""
        return np.broadcast_to(np.int32(1), len(self))

    @property
    def written(self) -> np.ndarray | None:
        """Tokens that the decoder writes of each item, int32 ``[items]``; here None, for there is no decoder."""
        return None

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self)

    def example_of(self, items: np.ndarray) -> np.ndarray:
        """The examples that items belong to."""
        return items

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return item ``index``: ``id`` (its example), ``rows`` (int64 arrays) and what the targets need."""

    @abstractmethod
    def targets(self, examples: list[dict[str, Any]], src_tokens: Tensor) -> Sample:
        """Return the family's own entries of the sample, ``target`` among them.

        ``src_tokens`` is the padded batch, ``[rows of all examples, T]``.
        """

    def collate(self, examples: list[dict[str, Any]]) -> Sample:
        """Merge examples into a sample; every row of every example is one line of ``src_tokens``."""
        rows = [row for example in examples for row in example["rows"]]
        src_tokens, ntokens = self.padded(rows), sum(map(len, rows))
        sample: Sample = {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": ntokens,
            # known here without a wait for the device
            "net_input": {"src_tokens": src_tokens, "padded": ntokens < src_tokens.numel()},
        }
        sample.update(self.targets(examples, src_tokens))
        return sample

    def tokens(self, stream: str) -> IndexedInts:
        """A stream of texts. Raises MuppetError for a token that the dictionary lacks."""
        tokens = self.data.tokens(stream)
        lowest, highest = self.data.bounds(stream)
        if lowest < 0 or highest >= self.layout.vocabulary:
            raise MuppetError(
                f"{self.data.path(stream)} holds token {lowest if lowest < 0 else highest}, but the dictionary has "
                f"only {self.layout.vocabulary} entries; prepare the dataset again"
            )
        return tokens

    def padded(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Stack rows of tokens into ``[rows, T]``."""
        return pad_rows(rows, self.layout.pad)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Lay out ``<s> first </s>`` or, as RoBERTa does for pairs, ``<s> first </s> </s> second </s>``.

        Both arguments end in ``</s>``. What does not fit into ``max_positions`` is cut from the end of
        the longer part, which keeps its ``</s>``.
        """
        if second is None:
            return np.concatenate((self.bos, self._cut(first, self.layout.max_positions - 1)))
        room = self.layout.max_positions - 2
        if len(first) + len(second) > room:
            keep_first, keep_second = fit_pair(len(first), len(second), room)
            first, second = self._cut(first, keep_first), self._cut(second, keep_second)
        return np.concatenate((self.bos, first, self.eos, second))

    def joined_length(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Lengths of :meth:`join` for arrays of part lengths (``</s>`` included)."""
        length = 1 + first if second is None else 2 + first + second
        return np.minimum(length, self.layout.max_positions).astype(np.int32)

    def _cut(self, part: np.ndarray, length: int) -> np.ndarray:
        if len(part) <= length:
            return part
        return np.concatenate((part[: length - 1], self.eos))


class RunningSum:
    """Where the parts of each item begin, if all parts are in one row: sums of counts.

    Only every :data:`STEP`-th sum is kept; those between are added up when asked for.

    Args:
        length: how many counts there are.
        counts: the counts from one place to another, int ``[end - begin]``.
    """

    #: counts to a sum that is kept, a divisor of BLOCK: 8 bytes for them, and microseconds to add some of them up
    STEP = 64

    def __init__(self, length: int, counts: Callable[[int, int], np.ndarray]) -> None:
        self._length, self._counts = length, counts
        sums = [np.zeros(1, dtype=np.int64)]
        for begin in range(0, length, BLOCK):
            block = counts(begin, min(begin + BLOCK, length))
            sums.append(np.add.reduceat(block, np.arange(0, len(block), self.STEP), dtype=np.int64))
        self._sums = np.cumsum(np.concatenate(sums))

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return int(self._sums[-1])

    def before(self, item: int) -> int:
        """The sum of the counts before an item."""
        step = item // self.STEP
        return int(self._sums[step]) + int(self._counts(step * self.STEP, item).sum())

    def find(self, part: int) -> tuple[int, int]:
        """The item that a part (below ``total``) belongs to, and its number among the item's parts."""
        step = int(np.searchsorted(self._sums, part, side="right")) - 1
        begin, rest = step * self.STEP, part - int(self._sums[step])
        ends = np.cumsum(self._counts(begin, min(begin + self.STEP, self._length)))
        place = int(np.searchsorted(ends, rest, side="right"))
        return begin + place, rest - (int(ends[place - 1]) if place else 0)


def no_text(*values: Any) -> str | None:
    """Say which of an example's values is no text, or return None."""
    for value in values:
        if not isinstance(value, str):
            return f"it has {str(value)[:40]} where a text belongs"
    return None


def fit_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Shorten the longer of two lengths (then both alike) until they fit into ``room``.

    What is odd goes to the longer, of two alike to the second, as with ``longest_first`` of ``tokenizers``.
    """
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)


def pad_rows(rows: Sequence[np.ndarray], pad: int) -> Tensor:
    """Stack int arrays of different lengths into an int64 tensor ``[rows, T]``, padded on the right."""
    out = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


class Family(ABC):
    """One kind of task. Instances hold no state; :data:`muppet_fairseq.families.FAMILIES` names them."""

    name: str
    #: the metrics a dataset of this family may name; the first is the default
    metric_names: tuple[str, ...]
    #: the raw example's key that holds what is to be predicted
    gold: str
    #: the raw example's key with a list of classes, for datasets whose catalog entry cannot name them beforehand
    labels_key: str | None = None
    #: how few and how many classes a dataset may have
    num_labels = (0, 0)
    #: whether it needs a decoder that writes text (BART's)
    generates = False

    # -- preprocessing ------------------------------------------------------------------------------

    @abstractmethod
    def streams(self, num_inputs: int) -> dict[str, str]:
        """Return what is stored for a dataset: stream name to kind.

        Kinds: ``tokens`` (a text's token ids and ``</s>``), ``ints`` (an int32 sequence), ``scalar`` (one
        int32), ``label`` (a class, as fairseq's ``sentence_prediction`` reads it) and ``value`` (a number, as
        its ``--regression-target``).
        """

    @abstractmethod
    def check(self, example: dict[str, Any], labels: Sequence[str]) -> str | None:
        """Say why a raw example cannot be used, or return None."""

    @abstractmethod
    def encode(self, examples: list[dict[str, Any]], tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, list]:
        """Turn raw examples into items for each stream of :meth:`streams`, in order."""

    # -- training -----------------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, data: BinarizedSplit, layout: Layout, *, training: bool) -> FamilyDataset:
        """Lay out a split. Raises MuppetError when stored values contradict each other."""

    @abstractmethod
    def head(self, spec: DatasetSpec, dim: int, dropout: float) -> tuple[str, nn.Module] | None:
        """Return the name and module of the head that predicts ``spec``, or None where there is none."""

    @abstractmethod
    def logits(self, model: Callable[..., Tensor], sample: Sample, head: str | None) -> Tensor:
        """Return predictions, ``[B, n]`` or ``[B, n, k]``; ``-inf`` marks what is no candidate."""

    @abstractmethod
    def loss(self, logits: Tensor, sample: Sample, label_smoothing: float) -> Tensor:
        """Return the unscaled loss of each example, float32 ``[B]``; only generation smooths its labels."""

    @abstractmethod
    def num_predictions(self, logits: Tensor, sample: Sample) -> Tensor:
        """Return ``n(i)`` for each example, float32 ``[B]``: if all predictions are equal, loss = log n(i)."""

    def divergence(self, first: Tensor, second: Tensor, sample: Sample, between: Divergence = symmetric_kl) -> Tensor:
        """Return the divergence of two predictions (:meth:`logits`) of each example, float32 ``[B]``; R3F's, or the
        one that is given as ``between``."""
        return between(first, second, 1)

    def by_example(self, values: Tensor, sample: Sample) -> Tensor:
        """Add up the values of rows of ``src_tokens``, ``[R]``, by example: ``[B]``."""
        return values

    @abstractmethod
    def num_statistics(self, spec: DatasetSpec) -> int:
        """Return how many counts :meth:`statistics` yields for this dataset."""

    @abstractmethod
    def statistics(self, logits: Tensor, sample: Sample, spec: DatasetSpec) -> Tensor:
        """Return counts ``[num_statistics]`` that may be summed over batches and workers."""

    @abstractmethod
    def metrics(self, statistics: np.ndarray, spec: DatasetSpec) -> dict[str, float]:
        """Turn summed statistics of at least one example into metrics, main metric first, best value 1."""

    # -- prediction ---------------------------------------------------------------------------------

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        sample: Sample,
        spec: DatasetSpec,
        head: str | None,
        generator: Generator | None,
    ) -> list[dict[str, Any]]:
        """Return what the model says of each example of a sample that is not for training, as JSON values."""

    @abstractmethod
    def evaluate(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> dict[str, float]:
        """Judge predictions (:meth:`predict`) of raw examples by the dataset's metric, which comes first."""

    def example_scores(
        self, predictions: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]], spec: DatasetSpec
    ) -> list[float]:
        """Return what each example contributes to the first metric of :meth:`evaluate`, ``[examples]``.

        These are the jackknife's :func:`~muppet_fairseq.metrics.jackknife.pseudo_values`. Of a mean over examples they
        are the examples' own values, which is what this method returns; a family with other metrics overrides it.
        """
        single = (self.evaluate([p], [e], spec) for p, e in zip(predictions, examples, strict=True))
        return [next(iter(metrics.values())) for metrics in single]
