"""Reads one folder ``data-bin/<dataset>``: memory-mapped, checked when opened, never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset, _code_to_dtype

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset, Layout
from muppet_fairseq.families.regression import LARGEST_VALUE
from muppet_fairseq.files import read_up_to
from muppet_fairseq.spec import DatasetSpec, read_dataset_json

#: fairseq's label dictionaries begin with <s>, <pad>, </s> and <unk>
_LABEL_OFFSET = Dictionary().nspecial

#: how an .idx begins: magic, version, type of the items, number of items; then 12 bytes an item
_INDEX_HEADER = struct.Struct("<9sQBQ")
#: items of an index that are looked at at a time
_BLOCK = 1 << 14
#: numpy reads a header as Python, of whose parser two threads at once break each other's count (Python 3.11)
_PARSING = threading.Lock()
#: bytes of a file that are read at a time: they stay in the cache for all that is done with them
_READ = 1 << 18

#: bytes that a number of a ``.label`` file has at most, on average
_LONGEST_LINE = 1 << 10

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
    """Sequences of integers in fairseq's memory-mapped format; item ``i`` is an int64 array.

    fairseq's own class reads both files whole where it opens them, and makes a tensor of each item.

    Attributes:
        sizes: of the items, int32, memory-mapped.

    Raises MuppetError for files that are not of this format, or do not fit each other.
    """

    def __init__(self, path: Path) -> None:
        dtype, items = _check_indexed(path)
        index = np.memmap(f"{path}.idx", mode="r")
        self.sizes = np.frombuffer(index, np.int32, items, _INDEX_HEADER.size)
        self._pointers = np.frombuffer(index, np.int64, items, _INDEX_HEADER.size + self.sizes.nbytes)
        self._flat = np.frombuffer(np.memmap(f"{path}.bin", mode="r"), dtype)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        begin = self._pointers[index] // self._flat.itemsize
        return self._flat[begin : begin + self.sizes[index]].astype(np.int64)

    def flat(self) -> np.ndarray:
        """All items one after the other, without a copy."""
        return self._flat


class ClassIndices:
    """The classes of examples, memory-mapped; entry ``i`` is int64, a slice an array of them."""

    def __init__(self, symbols: np.ndarray) -> None:
        self._symbols = symbols

    def __len__(self) -> int:
        return len(self._symbols)

    def __getitem__(self, which: int | slice) -> np.ndarray:
        return self._symbols[which].astype(np.int64) - _LABEL_OFFSET


def _check_indexed(path: Path) -> tuple[np.dtype, int]:
    """Return the type of the numbers and the number of items. Raises as :class:`IndexedInts`."""
    index, content = (path.with_name(path.name + suffix) for suffix in (".idx", ".bin"))
    try:
        with index.open("rb") as stream:
            header = stream.read(_INDEX_HEADER.size)
        index_bytes, content_bytes = index.stat().st_size, content.stat().st_size
    except OSError as error:
        raise MuppetError(f"{error.filename} cannot be read ({error.strerror}); prepare the dataset again") from None
    magic, version, kind, items = _INDEX_HEADER.unpack(header.ljust(_INDEX_HEADER.size, b"\0"))
    fits = index_bytes == _INDEX_HEADER.size + 12 * items and items > 0
    is_known = magic == MMapIndexedDataset.Index._HDR_MAGIC and version == 1
    if not (fits and is_known and np.issubdtype(_code_to_dtype.get(kind, np.void), np.integer)):
        raise MuppetError(f"{index} is truncated or no index of fairseq's mmap format; prepare the dataset again")
    if content_bytes == 0:
        raise MuppetError(f"{content} is empty; prepare the dataset again")
    dtype = np.dtype(_code_to_dtype[kind])
    if not _adds_up(index, items, dtype.itemsize, content_bytes):
        raise MuppetError(f"{index} does not fit {content.name}; prepare the dataset again")
    return dtype, items


def _adds_up(index: Path, items: int, item_bytes: int, content_bytes: int) -> bool:
    """Whether every item begins where the one before ends, the first at 0, and the last ends with the content."""

    def read(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and pointers of some items; nothing is mapped, for there may be no room for the whole."""
        sizes = np.fromfile(index, np.int32, count, offset=_INDEX_HEADER.size + 4 * first)
        return sizes, np.fromfile(index, np.int64, count, offset=_INDEX_HEADER.size + 4 * items + 8 * first)

    # the end first: an index of absurd length is not read through
    (size,), (pointer,) = read(items - 1, 1)
    if int(pointer) + int(size) * item_bytes != content_bytes:
        return False
    end = 0
    for first in range(0, items, _BLOCK):
        sizes, pointers = read(first, min(_BLOCK, items - first))
        ends = end + np.cumsum(sizes, dtype=np.int64) * item_bytes
        if sizes.min() < 0 or not np.array_equal(pointers, np.append(end, ends[:-1])):
            return False
        end = int(ends[-1])
    return True


def _read_through(path: Path, dtype: np.dtype) -> tuple[str, int, int]:
    """The SHA-256 of a file of numbers, and the lowest and the highest of them.

    Read, not mapped: mapping costs more, and would make all of the file part of the process.
    """
    digest, block = hashlib.sha256(), np.empty(_READ, np.uint8)
    numbers, lowest, highest = block.view(dtype), np.iinfo(dtype).max, np.iinfo(dtype).min
    with path.open("rb") as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
            part = numbers[: size // dtype.itemsize]
            lowest, highest = min(lowest, int(part.min())), max(highest, int(part.max()))
    return digest.hexdigest(), lowest, highest


def _float32(text: str) -> np.float32:
    """The number that a line holds; nan if it holds none, an infinity if the number is too large."""
    try:
        with np.errstate(over="ignore"):
            return np.float32(float(text))
    except ValueError:
        return np.float32("nan")


def open_tokenizer(data: Path, names: Iterable[str]) -> Tokenizer:
    """Load the tokenizer of a data-bin folder.

    Raises MuppetError where it is not the one that the named datasets were binarised with.
    """
    tokenizer = Tokenizer.load(data / "tokenizer")
    for name in names:
        if not is_of(read_dataset_json(data / name), tokenizer):
            raise MuppetError(
                f"{tokenizer.folder} is not the tokenizer that {data / name} was binarised with: copy that one there, "
                "or prepare the dataset again"
            )
    return tokenizer


def is_of(meta: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether a dataset, by its ``dataset.json``, was binarised with a tokenizer; of its dictionary nothing is said."""
    return meta["tokenizer"] == {"type": tokenizer.type, "sha256": tokenizer.sha256}


class BinarizedSplit:
    """One split of one dataset. ``spec.examples`` is not applied here: this is what is on the disk.

    Raises MuppetError, naming the file and the cure, for a split that is missing, empty, truncated, or
    binarised with another dictionary than ``dictionary_sha256``.
    """

    def __init__(self, data: str | Path, spec: DatasetSpec, split: str, dictionary_sha256: str) -> None:
        self.spec, self.split = spec, split
        self.folder = Path(data) / spec.name
        self._opened: dict[str, IndexedInts] = {}
        self._bounds: dict[str, tuple[int, int]] = {}
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
        """Look at the sizes of the split's files; what is in them is looked at when they are opened."""
        again = "it is truncated or from another run; prepare the dataset again"
        for name, file in self.meta["files"].items():
            path = self.folder / name
            # train.bin, train.label and train.source-target.source.bin belong to the split train
            if path.name.partition(".")[0] != self.split:
                continue
            if not path.is_file():
                raise MuppetError(f"{path} is {'no file' if path.exists() else 'missing'}; prepare the dataset again")
            if path.stat().st_size != file["bytes"]:
                raise MuppetError(f"{path} has {path.stat().st_size} bytes instead of {file['bytes']}: {again}")

    def _verify(self, path: Path) -> None:
        """Raise MuppetError unless a file is the one that was written, bit for bit.

        It costs the reading of the file, which fairseq does, too, and 1.15 s of CPU a GB (measured on a Xeon at 2.8 GHz
        with SHA instructions). Workers of one machine share what is read, but each computes.
        """
        with path.open("rb") as stream:
            self._compare(path, hashlib.file_digest(stream, "sha256").hexdigest())

    def _compare(self, path: Path, found: str) -> None:
        """Raise MuppetError unless a file's SHA-256 is the one that was written down."""
        listed = self.meta["files"].get(path.relative_to(self.folder).as_posix())
        if listed is None:
            raise MuppetError(
                f"{self.folder / 'dataset.json'} does not list {path}, which this dataset needs; prepare it again"
            )
        if found != listed["sha256"]:
            raise MuppetError(
                f"{path} is not the file that was written, its SHA-256 differs: it is damaged or from another run; "
                "prepare the dataset again"
            )

    def laid_out(self, layout: Layout, *, training: bool) -> FamilyDataset:
        """The split's examples as the dataset's family lays them out.

        Raises MuppetError when stored values contradict each other, or there are more than fit into memory.
        """
        listed = self.meta["splits"][self.split]["examples"]
        try:
            dataset = FAMILIES[self.spec.family].dataset(self, layout, training=training)
        except MemoryError:
            raise MuppetError(
                f"{self.folder}: the {listed} examples of {self.split!r} do not fit into this machine's memory; "
                "prepare fewer, or use a larger machine"
            ) from None
        if dataset.num_examples != listed:
            raise MuppetError(
                f"{self.folder}: the split {self.split!r} holds {dataset.num_examples} examples, but dataset.json says "
                f"{listed}; prepare the dataset again"
            )
        return dataset

    def path(self, stream: str) -> Path:
        """Where the stream lies, without the suffix of its files."""
        return stream_path(self.folder, stream, self.split)

    def _indexed(self, stream: str) -> IndexedInts:
        if stream not in self._opened:
            stored = IndexedInts(self.path(stream))
            index, content = (Path(f"{self.path(stream)}{suffix}") for suffix in (".idx", ".bin"))
            self._verify(index)
            found, lowest, highest = _read_through(content, stored.flat().dtype)
            self._compare(content, found)
            self._opened[stream], self._bounds[stream] = stored, (lowest, highest)
        return self._opened[stream]

    def tokens(self, stream: str) -> IndexedInts:
        """Token ids, each item ending in ``</s>``."""
        tokens = self._indexed(stream)
        if int(tokens.sizes.min()) < 1:
            raise MuppetError(f"{self.path(stream)}.idx has an item without tokens; prepare the dataset again")
        return tokens

    def ints(self, stream: str) -> IndexedInts:
        return self._indexed(stream)

    def bounds(self, stream: str) -> tuple[int, int]:
        """The lowest and the highest number of a stream of tokens or ints."""
        self._indexed(stream)
        return self._bounds[stream]

    def scalars(self, stream: str) -> np.ndarray:
        """One int32 a row, ``[rows]``."""
        path = self.path(stream).with_name(f"{self.split}.npy")
        try:
            # not np.load, which would also open an archive; pickled objects are refused
            with _PARSING:
                values = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy raises what it likes for a damaged header
            reason = " ".join(str(error).split())[:200]
            raise MuppetError(f"{path} is broken ({reason}); prepare the dataset again") from None
        if values.ndim != 1 or values.dtype != np.int32:
            raise MuppetError(f"{path} holds no list of int32; prepare the dataset again")
        self._verify(path)
        # the class memmap is slow for small parts
        return np.asarray(values)

    def labels(self) -> ClassIndices:
        """Class indices ``[examples]`` from fairseq's ``label`` stream."""
        stream = self._indexed("label")
        if not np.all(stream.sizes == 2):
            raise MuppetError(f"{self.path('label')}.idx: a label is not one symbol; prepare the dataset again")
        return ClassIndices(stream.flat().reshape(-1, 2)[:, 0])

    def values(self) -> np.ndarray:
        """Numbers, float32 ``[examples]``, from the ``label`` file of fairseq's ``--regression-target``.

        Raises MuppetError for a file that is missing, cut off or of absurd length, and for a line that is no number
        up to :data:`LARGEST_VALUE`.
        """
        path = self.path("label").with_name(f"{self.split}.label")
        try:
            content = read_up_to(path, _LONGEST_LINE * self.meta["splits"][self.split]["examples"])
        except OSError as error:
            raise MuppetError(f"{path} cannot be read ({error.strerror}); prepare the dataset again") from None
        except ValueError as error:
            raise MuppetError(f"{path} is broken ({error}); prepare the dataset again") from None
        self._verify(path)
        text = content.decode("ascii", errors="replace")
        if not text.endswith("\n"):
            raise MuppetError(f"{path} is cut off: its last line does not end; prepare the dataset again")
        lines = text.removesuffix("\n").split("\n")
        values = np.array([_float32(line) for line in lines], dtype=np.float32)
        wrong = np.flatnonzero(~(np.abs(values) <= LARGEST_VALUE))
        if len(wrong):
            raise MuppetError(
                f"{path}: line {wrong[0] + 1} is {lines[wrong[0]][:60]!r}, which is no number up to "
                f"{LARGEST_VALUE:g}; prepare the dataset again"
            )
        return values

    def raw(self, index: int) -> dict[str, Any]:
        """The example as preprocessing read it (kept for every split but ``train``).

        Raises MuppetError if it is none of the dataset's family.
        """
        content = self._indexed("raw")[index].astype(np.uint8).tobytes()
        family = FAMILIES[self.spec.family]
        # where the training examples say what the classes are, others may have more
        labels = () if family.labels_key else self.spec.labels
        try:
            example = json.loads(content)
            fault = family.check(example, labels)
        except (ValueError, RecursionError) as error:
            fault = f"it is no JSON ({error})"
        except (LookupError, TypeError, AttributeError) as error:
            fault = f"its values are not those of the family {family.name} ({error!r})"
        if fault is not None:
            raise MuppetError(
                f"{self.path('raw')}.bin: example {index} cannot be used: {fault[:300]}; prepare the dataset again"
            )
        return example

    def require_equal_lengths(self, **streams: Any) -> None:
        """Raise MuppetError unless all given streams have one entry per row."""
        lengths = {name: len(stream) for name, stream in streams.items() if stream is not None}
        if len(set(lengths.values())) > 1:
            counted = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise MuppetError(
                f"{self.folder}: the streams of {self.split!r} differ in length ({counted}); prepare the dataset again"
            )
