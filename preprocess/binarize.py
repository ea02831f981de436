"""From canonical examples to ``data-bin/<dataset>``, in the layout that fairseq's own tasks read.

A dataset is written to ``.<name>.partial`` beside its place and moved there when all is done, ``dataset.json``
last of all: what bears the dataset's name is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset, _dtype_header_code, best_fitting_int_dtype

from muppet_fairseq.data.binarized import dictionary_path, stream_path
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import FORMAT, write_dataset_json
from preprocess.convert import Example, Examples, Split, chunked
from preprocess.entry import Entry
from preprocess.jobs import Workers

#: what a chunk's items of a stream become: all numbers one after the other, and the size of each item
Packed = tuple[np.ndarray, np.ndarray]
#: items of an index that are written at a time
INDEX_ITEMS = 2**20


class _Sequences:
    """Writes one int sequence an item, as fairseq's memory-mapped dataset.

    fairseq's own builder takes one tensor at a time and keeps the sizes of all of them in memory.
    """

    def __init__(self, path: Path, dtype: type) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._items: IO[bytes] = open(f"{path}.bin", "wb")  # noqa: SIM115 -- closed by close()
        self._sizes: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115

    def extend(self, packed: Packed) -> None:
        flat, sizes = packed
        self._items.write(flat.astype(self._dtype, copy=False).data)
        self._sizes.write(sizes.astype(np.int32, copy=False).data)

    def close(self) -> None:
        self._items.close()
        with self._sizes as sizes, open(f"{self._path}.idx", "wb") as index:
            number = sizes.tell() // 4
            index.write(MMapIndexedDataset.Index._HDR_MAGIC)
            index.write(struct.pack("<QBQ", 1, _dtype_header_code(self._dtype.type), number))
            sizes.seek(0)
            shutil.copyfileobj(sizes, index)
            sizes.seek(0)
            begin = 0
            while part := sizes.read(4 * INDEX_ITEMS):
                ends = begin + np.cumsum(np.frombuffer(part, dtype=np.int32), dtype=np.int64) * self._dtype.itemsize
                index.write(np.concatenate([[begin], ends[:-1]]).astype(np.int64).data)
                begin = ends[-1]


class _Scalars:
    """Writes one int32 an item, as a numpy file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = array("i")

    def extend(self, packed: Packed) -> None:
        self._values.frombytes(packed[0].astype(np.int32).tobytes())

    def close(self) -> None:
        np.save(f"{self._path}.npy", np.frombuffer(self._values, dtype=np.int32))


class _Values:
    """Writes one number an item, as the lines of text that fairseq's ``--regression-target`` reads."""

    def __init__(self, path: Path) -> None:
        self._lines = open(f"{path}.label", "w", encoding="ascii")  # noqa: SIM115 -- closed by close()

    def extend(self, packed: Packed) -> None:
        self._lines.writelines(f"{value!r}\n" for value in packed[0].tolist())

    def close(self) -> None:
        self._lines.close()


class _Labels(_Sequences):
    """Writes one class an item, as the label's symbol and ``</s>``."""

    def __init__(self, path: Path, dictionary: Dictionary) -> None:
        super().__init__(path, best_fitting_int_dtype(len(dictionary)))
        self._dictionary = dictionary

    def extend(self, packed: Packed) -> None:
        symbols = packed[0] + self._dictionary.nspecial
        rows = np.stack([symbols, np.full_like(symbols, self._dictionary.eos())], axis=1)
        super().extend((rows, np.full(len(rows), 2)))


def binarize(
    entry: Entry,
    splits: Mapping[str, Split],
    tokenizer: Tokenizer,
    out: Path,
    progress: Callable[[int], Any] = lambda _: None,
    workers: Workers | None = None,
    revision: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write a dataset to ``out/<name>``, in the place of an older one, and return its ``dataset.json``.

    Args:
        entry: the dataset.
        splits: as :func:`preprocess.convert.convert` returns them.
        tokenizer: its ``dict.txt`` is the one of ``out``.
        out: the ``data-bin`` folder; it exists.
        progress: called with the number of examples just written.
        workers: convert and tokenise.
        revision: of the source, as its ``identity`` says it.

    Raises:
        MuppetError: a split has no examples, or what reading the splits raises.
    """
    partial_folder = out / f".{entry.name}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    try:
        labels, splits = _labels(entry, splits)
        counts = {
            name: _write_split(entry, labels, name, split, tokenizer, partial_folder, progress, workers)
            for name, split in splits.items()
        }
        meta = _metadata(entry, labels, splits, counts, tokenizer) | {"revision": revision}
        meta["files"] = {name: fingerprint(partial_folder / name) for name in files_in(partial_folder)}
        meta = write_dataset_json(partial_folder, meta)
        _replace_folder(partial_folder, out / entry.name)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise
    return meta


def num_inputs(entry: Entry) -> int:
    """Number of texts an example of the dataset has (2 where the family decides)."""
    inputs = entry.fields.get("inputs")
    return 2 if inputs is None else len(inputs)


def files_in(folder: Path) -> list[str]:
    """Paths of the files in a dataset's folder, relative and sorted, ``dataset.json`` not among them."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != "dataset.json")


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as ``dataset.json`` lists them."""
    with path.open("rb") as stream:
        return {
            "bytes": os.fstat(stream.fileno()).st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _labels(entry: Entry, splits: Mapping[str, Split]) -> tuple[list[str], Mapping[str, Split]]:
    """The dataset's classes, and the splits again: those of the entry or, where it names none and its family has
    some, those of the training examples, sorted (so that the numbers do not hang on the rows' order)."""
    key = FAMILIES[entry.family].labels_key
    if entry.labels or key is None:
        return entry.label_names, splits
    # read twice: once for the classes, once for writing them
    examples = list(splits["train"].examples)
    train = replace(splits["train"], chunks=map(Examples, chunked(examples)), size=len(examples))
    return sorted({label for example in examples for label in example[key]}), {**splits, "train": train}


def _write_split(
    entry: Entry,
    labels: Sequence[str],
    name: str,
    split: Split,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Callable[[int], Any],
    workers: Workers | None,
) -> int:
    streams = FAMILIES[entry.family].streams(num_inputs(entry))
    writers = {stream: _writer(kind, folder, stream, name, entry, tokenizer) for stream, kind in streams.items()}
    if name != "train":
        (folder / "raw").mkdir(exist_ok=True)
        writers["raw"] = _Sequences(stream_path(folder, "raw", name), np.uint8)
    count = 0
    for examples, encoded in split.map(partial(_encoded, entry.family, labels, tokenizer, tuple(writers)), workers):
        for stream, writer in writers.items():
            writer.extend(encoded[stream])
        count += examples
        progress(examples)
    for writer in writers.values():
        writer.close()
    if not count:
        raise MuppetError(
            f"{entry.name}: the split {name!r} has no examples ({_left_out(split)}); check {entry.source}"
        )
    return count


def _encoded(
    family: str, labels: Sequence[str], tokenizer: Tokenizer, streams: Sequence[str], examples: list[Example]
) -> tuple[int, dict[str, Packed]]:
    """The number of examples, and their streams; ``raw`` is the examples themselves, as bytes of JSON."""
    encoded = FAMILIES[family].encode(examples, tokenizer, labels) if examples else {stream: [] for stream in streams}
    if "raw" in streams:
        encoded["raw"] = [np.frombuffer(orjson.dumps(example), dtype=np.uint8) for example in examples]
    return len(examples), {stream: _packed(encoded[stream]) for stream in streams}


def _packed(items: Sequence[Any]) -> Packed:
    if items and isinstance(items[0], int | float):
        return np.array(items), np.ones(len(items), dtype=np.int32)
    arrays = list(map(np.asarray, items))
    sizes = np.fromiter(map(len, arrays), dtype=np.int32, count=len(arrays))
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32), sizes


def _left_out(split: Split) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.account.dropped.items())
    return f"{split.account.rows} rows read" + (f", left out: {reasons}" if reasons else "")


def _writer(
    kind: str, folder: Path, stream: str, split: str, entry: Entry, tokenizer: Tokenizer
) -> _Sequences | _Scalars | _Values:
    path = stream_path(folder, stream, split)
    path.parent.mkdir(exist_ok=True)
    if kind == "tokens":
        shutil.copyfile(tokenizer.folder / "dict.txt", dictionary_path(folder, stream))
        return _Sequences(path, best_fitting_int_dtype(len(tokenizer.dictionary)))
    if kind == "ints":
        return _Sequences(path, np.int32)
    if kind == "scalar":
        return _Scalars(path)
    if kind == "value":
        return _Values(path)
    dictionary = Dictionary()
    for label in range(len(entry.labels)):
        dictionary.add_symbol(str(label))
    dictionary.save(str(dictionary_path(folder, stream)))
    return _Labels(path, dictionary)


def _metadata(
    entry: Entry, labels: list[str], splits: Mapping[str, Split], counts: Mapping[str, int], tokenizer: Tokenizer
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": entry.name,
        "family": entry.family,
        "metric": entry.metric,
        "labels": labels,
        "num_inputs": num_inputs(entry),
        "splits": {
            name: {
                "examples": counts[name],
                # of a split that is divided, all rows are on the account of "train"
                "rows": split.account.rows,
                "dropped": dict(sorted(split.account.dropped.items())),
                "published": entry.published.get(name),
            }
            for name, split in splits.items()
        },
        "dictionary": dictionary_sha256(tokenizer.folder / "dict.txt"),
        "tokenizer": {"type": tokenizer.type, "sha256": tokenizer.sha256},
        "entry": entry.sha256(),
        "source": str(entry.source),
        "licence": entry.licence,
        "citation": entry.citation,
        "note": entry.note,
    }


def _replace_folder(new: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
