"""Raw examples encoded in memory, read like a split on the disk: what the hub answers questions about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import DatasetSpec


class _Sequences:
    """What :class:`muppet_fairseq.data.binarized.IndexedInts` is for files."""

    def __init__(self, items: Sequence[np.ndarray]) -> None:
        self._items = items
        self.sizes = np.array([len(item) for item in items], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._items[int(index)]

    def flat(self) -> np.ndarray:
        return np.concatenate(self._items)


class EncodedSplit(BinarizedSplit):
    """Raw examples of ``spec``'s family as its datasets read them.

    Args:
        spec: what the examples are predicted as.
        examples: with all keys that the family's :meth:`encode` asks for.
        tokenizer: the model's.
    """

    def __init__(self, spec: DatasetSpec, examples: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> None:
        self.spec, self.split, self.folder = spec, "given", Path(spec.name)
        self.examples = list(examples)
        self._streams = FAMILIES[spec.family].encode(self.examples, tokenizer, spec.labels)

    def _indexed(self, stream: str) -> _Sequences:
        return _Sequences([np.asarray(item) for item in self._streams[stream]])

    def ints(self, stream: str) -> _Sequences | list:
        return self.examples if stream == "raw" else self._indexed(stream)

    def scalars(self, stream: str) -> np.ndarray:
        return np.array(self._streams[stream], dtype=np.int32)

    def bounds(self, stream: str) -> tuple[int, int]:
        flat = self._indexed(stream).flat()
        return int(flat.min()), int(flat.max())

    def labels(self) -> np.ndarray:
        return np.array(self._streams["label"], dtype=np.int64)

    def values(self) -> np.ndarray:
        return np.array(self._streams["label"], dtype=np.float32)

    def raw(self, index: int) -> dict[str, Any]:
        return self.examples[index]
