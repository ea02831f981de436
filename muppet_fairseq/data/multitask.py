"""The datasets of a suite as the one dataset that fairseq's trainer iterates over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.schedule import Sizes
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import FamilyDataset, Layout, Sample
from muppet_fairseq.spec import DatasetSpec, read_dataset_json

#: datasets that are opened at once, at most: other workers on the machine open theirs, too
_THREADS = 8


class MultitaskDataset(FairseqDataset):
    """Concatenation of family datasets; a sub-batch must come from one of them.

    Samples name their ``items``, int64 ``[B]``: places among those of the dataset that are used (its ``subsets``).

    Args:
        datasets: the laid-out datasets, in the suite's order.
        specs: their specifications; ``spec.examples`` limits a training set to that many examples, drawn
            with ``spec.partition`` as the seed.
        numbers: their places in the suite, which samples carry as ``dataset``.
        training: whether this is the split that is trained on.
        prompted: whether the model has a prompt for each dataset, whose name it is then to be told.
    """

    #: a new epoch needs no new iterator: :class:`muppet_fairseq.data.iterator.ScheduleIterator` plans it
    can_reuse_epoch_itr_across_epochs = True

    def __init__(
        self,
        datasets: Sequence[FamilyDataset],
        specs: Sequence[DatasetSpec],
        numbers: Sequence[int],
        *,
        training: bool,
        prompted: bool = False,
    ) -> None:
        self.datasets, self.specs, self.numbers = list(datasets), list(specs), list(numbers)
        self.training, self.prompted = training, prompted
        self.subsets = [self._subset(d, s) for d, s in zip(self.datasets, self.specs, strict=True)]
        self.ends = np.cumsum([len(subset) for subset in self.subsets])

    @classmethod
    def open(
        cls,
        data: str | Path,
        specs: Sequence[DatasetSpec],
        split: str,
        layout: Layout,
        dictionary_sha256: str,
        *,
        training: bool,
        prompted: bool = False,
    ) -> MultitaskDataset:
        """Open ``split`` of every dataset; when not training, datasets without that split are left out.

        Raises MuppetError for data that cannot be used, or where nothing is left.
        """

        def open_one(spec: DatasetSpec) -> FamilyDataset | None:
            if not training and split not in read_dataset_json(Path(data) / spec.name)["splits"]:
                return None
            return BinarizedSplit(data, spec, split, dictionary_sha256).laid_out(layout, training=training)

        # reading and computing digests, which is what takes long, leave the interpreter to the other threads
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            datasets = list(threads.map(open_one, specs))
        numbers = [number for number, dataset in enumerate(datasets) if dataset is not None]
        if not numbers:
            raise MuppetError(f"no dataset of the suite has a split {split!r} in {data}")
        opened, there = ([every[number] for number in numbers] for every in (datasets, specs))
        return cls(opened, there, numbers, training=training, prompted=prompted)

    def _subset(self, dataset: FamilyDataset, spec: DatasetSpec) -> Sequence[int]:
        """The items that are used: a range where that is all, as it takes no memory."""
        if not self.training or spec.examples is None:
            return range(len(dataset))
        examples = np.random.default_rng(spec.partition).permutation(dataset.num_examples)
        example_of = dataset.example_of(np.arange(len(dataset)))
        return np.flatnonzero(np.isin(example_of, examples[: spec.examples]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        subset = self.subsets[number]
        item = int(index - self.ends[number]) + len(subset)
        return number, {"item": item, **self.datasets[number][int(subset[item])]}

    def collater(self, samples: list[tuple[int, dict[str, Any]]]) -> Sample:
        """Merge the examples of one sub-batch; nothing gives ``{}``, fairseq's sign for an empty batch."""
        if not samples:
            return {}
        number = samples[0][0]
        sample = self.datasets[number].collate([example for _, example in samples])
        if self.prompted:
            sample["net_input"]["prompt"] = self.specs[number].name
        return {
            "dataset": self.numbers[number],
            # no tensor: the audit reads it, which must not wait for a GPU
            "items": np.array([example["item"] for _, example in samples]),
            **sample,
        }

    def sizes_by_dataset(self) -> list[Sizes]:
        """What the schedule needs to know."""
        parts = [slice(None) if isinstance(subset, range) else subset for subset in self.subsets]
        return [
            Sizes(
                spec.name,
                dataset.lengths[part],
                dataset.rows[part],
                None if (written := dataset.written) is None else written[part],
            )
            for dataset, spec, part in zip(self.datasets, self.specs, parts, strict=True)
        ]
