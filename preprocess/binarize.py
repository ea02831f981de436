"""From canonical examples to ``data-bin/<dataset>``, in the layout that fairseq's own tasks read.

A dataset is written to ``.<name>.partial`` beside its place and moved there when all is done, ``dataset.json``
last of all: what bears the dataset's name is whole.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder, best_fitting_int_dtype

from muppet_fairseq.data.binarized import dictionary_path, stream_path
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import FORMAT
from preprocess.convert import Example, Split
from preprocess.entry import Entry

CHUNK = 1000


class _Sequences:
    """Writes one int sequence an item, as fairseq's memory-mapped dataset."""

    def __init__(self, path: Path, dtype: type) -> None:
        self._path = path
        self._builder = MMapIndexedDatasetBuilder(f"{self._path}.bin", dtype=dtype)

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self._builder.add_item(torch.as_tensor(item))

    def close(self) -> None:
        self._builder.finalize(f"{self._path}.idx")


class _Scalars:
    """Writes one int32 an item, as a numpy file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = array("i")

    def extend(self, items: Iterable[int]) -> None:
        self._values.extend(items)

    def close(self) -> None:
        np.save(f"{self._path}.npy", np.array(self._values, dtype=np.int32))


class _Values:
    """Writes one number an item, as the lines of text that fairseq's ``--regression-target`` reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = array("d")

    def extend(self, items: Iterable[float]) -> None:
        self._values.extend(items)

    def close(self) -> None:
        lines = "".join(f"{value!r}\n" for value in self._values)
        Path(f"{self._path}.label").write_text(lines, encoding="ascii")


class _Labels(_Sequences):
    """Writes one class an item, as the label's symbol and ``</s>``."""

    def __init__(self, path: Path, dictionary: Dictionary) -> None:
        super().__init__(path, best_fitting_int_dtype(len(dictionary)))
        self._dictionary = dictionary

    def extend(self, items: Iterable[int]) -> None:
        shift, eos = self._dictionary.nspecial, self._dictionary.eos()
        super().extend([label + shift, eos] for label in items)


class _Raw(_Sequences):
    """Writes the example itself, as bytes of JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, np.uint8)

    def extend(self, items: Iterable[Example]) -> None:
        texts = (json.dumps(example, ensure_ascii=False).encode() for example in items)
        super().extend(np.frombuffer(text, dtype=np.uint8).copy() for text in texts)


def binarize(
    entry: Entry,
    splits: Mapping[str, Split],
    tokenizer: Tokenizer,
    out: Path,
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Write a dataset to ``out/<name>``, in the place of an older one, and return its ``dataset.json``.

    Args:
        entry: the dataset.
        splits: as :func:`preprocess.convert.convert` returns them.
        tokenizer: its ``dict.txt`` is the one of ``out``.
        out: the ``data-bin`` folder; it exists.
        progress: called with the number of examples just written.

    Raises:
        MuppetError: a split has no examples, or what iterating over the splits raises.
    """
    partial = out / f".{entry.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        streams = FAMILIES[entry.family].streams(num_inputs(entry))
        labels, splits = _labels(entry, splits)
        counts = {
            name: _write_split(entry, labels, name, split, streams, tokenizer, partial, progress)
            for name, split in splits.items()
        }
        meta = _metadata(entry, labels, splits, counts, tokenizer)
        meta["files"] = {name: fingerprint(partial / name) for name in files_in(partial)}
        (partial / "dataset.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        _replace_folder(partial, out / entry.name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
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
    train = replace(splits["train"], examples=list(splits["train"].examples))
    return sorted({label for example in train.examples for label in example[key]}), {**splits, "train": train}


def _write_split(
    entry: Entry,
    labels: Sequence[str],
    name: str,
    split: Split,
    streams: Mapping[str, str],
    tokenizer: Tokenizer,
    folder: Path,
    progress: Callable[[int], Any],
) -> int:
    writers = {stream: _writer(kind, folder, stream, name, entry, tokenizer) for stream, kind in streams.items()}
    raw = None
    if name != "train":
        (folder / "raw").mkdir(exist_ok=True)
        raw = _Raw(stream_path(folder, "raw", name))
    count = 0
    for chunk in _chunks(split.examples):
        encoded = FAMILIES[entry.family].encode(chunk, tokenizer, labels)
        for stream, writer in writers.items():
            writer.extend(encoded[stream])
        if raw is not None:
            raw.extend(chunk)
        count += len(chunk)
        progress(len(chunk))
    for writer in [*writers.values(), *([raw] if raw else [])]:
        writer.close()
    if not count:
        raise MuppetError(
            f"{entry.name}: the split {name!r} has no examples ({_left_out(split)}); check {entry.source}"
        )
    return count


def _left_out(split: Split) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.account.dropped.items())
    return f"{split.account.rows} rows read" + (f", left out: {reasons}" if reasons else "")


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


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
            name: {"examples": counts[name], "dropped": dict(sorted(split.account.dropped.items()))}
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
