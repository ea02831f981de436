"""Reads one folder ``data-bin/<dataset>``: memory-mapped, checked when opened, never trusted blindly."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset, _code_to_dtype

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import DatasetSpec, read_dataset_json

#: fairseq's label dictionaries begin with <s>, <pad>, </s> and <unk>
_LABEL_OFFSET = Dictionary().nspecial

#: how an .idx begins: magic, version, type of the items, number of items; then 12 bytes an item
_INDEX_HEADER = struct.Struct("<9sQBQ")

#: streams that lie as fairseq's ``translation`` reads them with ``--source-lang source --target-lang target``
_LANGUAGES = ("source", "target")


def stream_path(folder: Path, stream: str, split: str) -> Path:
    """Return where one split of a stream lies in a dataset's folder, without the suffix of its files."""
    if stream in _LANGUAGES:
        return folder / f"{split}.{'-'.join(_LANGUAGES)}.{stream}"
    return folder / stream / split


def dictionary_path(folder: Path, stream: str) -> Path:
    """Return where the dictionary of a stream of tokens or labels lies in a dataset's folder."""
    return folder / f"dict.{stream}.txt" if stream in _LANGUAGES else folder / stream / "dict.txt"


class IndexedInts:
    """Sequences of integers in fairseq's memory-mapped format; item ``i`` is an int64 array."""

    def __init__(self, path: Path) -> None:
        bytes_there = _check_files_of(path)
        self._dataset = MMapIndexedDataset(str(path))
        self.sizes: np.ndarray = self._dataset.sizes
        index = self._dataset._index
        ends = np.cumsum(self.sizes, dtype=np.int64) * index._dtype_size
        sound = (
            int(self.sizes.min()) >= 0
            and int(ends[-1]) == bytes_there
            and index._pointers[0] == 0
            and np.array_equal(index._pointers[1:], ends[:-1])
        )
        if not sound:
            raise MuppetError(f"{path}.idx does not fit {path.name}.bin; prepare the dataset again")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._dataset[int(index)].numpy()

    def flat(self) -> np.ndarray:
        """All items one after the other, without a copy."""
        return np.frombuffer(self._dataset._bin_buffer, dtype=self._dataset._index.dtype)


def _check_files_of(path: Path) -> int:
    """Return the bytes of ``path``.bin; raise MuppetError for all that fairseq's class could not open.

    (Where it cannot, it also prints the traceback of its destructor.)
    """
    index, content = (path.with_name(path.name + suffix) for suffix in (".idx", ".bin"))
    try:
        with index.open("rb") as stream:
            header = stream.read(_INDEX_HEADER.size)
        index_bytes, content_bytes = index.stat().st_size, content.stat().st_size
    except OSError as error:
        raise MuppetError(f"{error.filename} cannot be read ({error.strerror}); prepare the dataset again") from None
    if len(header) == _INDEX_HEADER.size:
        magic, version, kind, items = _INDEX_HEADER.unpack(header)
        fits = index_bytes == _INDEX_HEADER.size + 12 * items and items > 0
        if fits and magic == MMapIndexedDataset.Index._HDR_MAGIC and version == 1 and kind in _code_to_dtype:
            if content_bytes == 0:
                raise MuppetError(f"{content} is empty; prepare the dataset again")
            return content_bytes
    raise MuppetError(f"{index} is truncated or no index of fairseq's mmap format; prepare the dataset again")


def _float32(text: str) -> np.float32:
    """The number that a line holds; nan if it holds none, an infinity if the number is too large."""
    try:
        with np.errstate(over="ignore"):
            return np.float32(float(text))
    except ValueError:
        return np.float32("nan")


class BinarizedSplit:
    """One split of one dataset. ``spec.examples`` is not applied here: this is what is on the disk.

    Raises MuppetError, naming the file and the cure, for a split that is missing, empty, truncated, or
    binarised with another dictionary than ``dictionary_sha256``.
    """

    def __init__(self, data: str | Path, spec: DatasetSpec, split: str, dictionary_sha256: str) -> None:
        self.spec, self.split = spec, split
        self.folder = Path(data) / spec.name
        self.meta = read_dataset_json(self.folder)
        there = self.meta["splits"]
        if split not in there:
            raise MuppetError(f"{self.folder} has no split {split!r}; it has {', '.join(there) or 'none'}")
        if not there[split].get("examples"):
            raise MuppetError(f"{self.folder}: the split {split!r} is empty; prepare the dataset again")
        if self.meta["dictionary"] != dictionary_sha256:
            raise MuppetError(
                f"{self.folder} was binarised with another dictionary than {Path(data) / 'dict.txt'}; "
                "prepare it again with the tokenizer of this folder"
            )
        self._check_files()

    def _check_files(self) -> None:
        again = "it is truncated or from another run; prepare the dataset again"
        for name, file in self.meta["files"].items():
            path = self.folder / name
            # train.bin, train.label and train.source-target.source.bin belong to the split train
            if path.name.partition(".")[0] != self.split:
                continue
            if not path.is_file():
                raise MuppetError(f"{path} is missing; prepare the dataset again")
            if path.stat().st_size != file["bytes"]:
                raise MuppetError(f"{path} has {path.stat().st_size} bytes instead of {file['bytes']}: {again}")

    def path(self, stream: str) -> Path:
        """Where the stream lies, without the suffix of its files."""
        return stream_path(self.folder, stream, self.split)

    @cache  # noqa: B019 - a handful of streams, and both die together
    def _indexed(self, stream: str) -> IndexedInts:
        return IndexedInts(self.path(stream))

    def tokens(self, stream: str) -> IndexedInts:
        """Token ids, each item ending in ``</s>``."""
        tokens = self._indexed(stream)
        if int(tokens.sizes.min()) < 1:
            raise MuppetError(f"{self.path(stream)}.idx has an item without tokens; prepare the dataset again")
        return tokens

    def ints(self, stream: str) -> IndexedInts:
        return self._indexed(stream)

    def scalars(self, stream: str) -> np.ndarray:
        """One int32 a row, ``[rows]``."""
        path = self.path(stream).with_name(f"{self.split}.npy")
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MuppetError(f"{path} is broken ({error}); prepare the dataset again") from None
        if values.ndim != 1 or values.dtype != np.int32:
            raise MuppetError(f"{path} holds no list of int32; prepare the dataset again")
        return values

    def labels(self) -> np.ndarray:
        """Class indices ``[examples]`` from fairseq's ``label`` stream."""
        stream = self._indexed("label")
        if not np.all(stream.sizes == 2):
            raise MuppetError(f"{self.path('label')}.idx: a label is not one symbol; prepare the dataset again")
        return stream.flat().reshape(-1, 2)[:, 0].astype(np.int64) - _LABEL_OFFSET

    def values(self) -> np.ndarray:
        """Numbers, float32 ``[examples]``, from the ``label`` file of fairseq's ``--regression-target``.

        Raises MuppetError for a file that is missing or cut off, and for a line that is no finite float32.
        """
        path = self.path("label").with_name(f"{self.split}.label")
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise MuppetError(f"{path} cannot be read ({error.strerror}); prepare the dataset again") from None
        if not text.endswith("\n"):
            raise MuppetError(f"{path} is cut off: its last line does not end; prepare the dataset again")
        lines = text.removesuffix("\n").split("\n")
        values = np.array([_float32(line) for line in lines], dtype=np.float32)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise MuppetError(
                f"{path}: line {wrong[0] + 1} is {lines[wrong[0]][:60]!r}, which is no finite number of 32 bits; "
                "prepare the dataset again"
            )
        return values

    def raw(self, index: int) -> dict[str, Any]:
        """The example as preprocessing read it (kept for every split but ``train``)."""
        return json.loads(self._indexed("raw")[index].astype(np.uint8).tobytes())

    def require_equal_lengths(self, **streams: Any) -> None:
        """Raise MuppetError unless all given streams have one entry per row."""
        lengths = {name: len(stream) for name, stream in streams.items() if stream is not None}
        if len(set(lengths.values())) > 1:
            counted = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise MuppetError(
                f"{self.folder}: the streams of {self.split!r} differ in length ({counted}); prepare the dataset again"
            )
