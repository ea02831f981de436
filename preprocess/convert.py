"""From an entry's rows to canonical examples, with an account of every row that is left out.

A row is left out because the entry does so by design (:class:`LeaveOut`), because it is bad (a field is missing, the
label is none of the classes, the answer does not stand where it should), or because it repeats an earlier one of a
split that is divided: the two might come to stand on both sides. Splits that the source has stay as published.
More bad rows than ``max_bad_share`` mean that the source is not what the entry says: the dataset stops.

Rows are read one by one and converted in chunks, by other processes if there are some. A split that is divided goes
through a temporary file, so that no split is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import orjson

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from preprocess.download import Fetch
from preprocess.entry import BadRow, Entry, HeldOut, LeaveOut, Value, value_of
from preprocess.jobs import Workers

Example = dict[str, Any]
Item, Result = TypeVar("Item"), TypeVar("Result")

BAD = "bad row"
DUPLICATE = "duplicate"
#: so many bad rows are named, the others only counted
NAMED = 10
#: a chunk has at most so many items, and ends with the one that brings its texts to so many characters
CHUNK_ITEMS, CHUNK_CHARACTERS = 10_000, 2**20
#: what a field's function raises for a row that is not as it expects
_WRONG = (BadRow, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass
class Account:
    """What became of rows: the number read, the numbers left out by reason, and the first bad rows, each by the
    place where it stands and what is wrong with it."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, other: Account) -> list[str]:
        """Add another account; return the bad rows that are named in this one only now."""
        self.rows += other.rows
        self.dropped.update(other.dropped)
        named = other.bad[: NAMED - len(self.bad)]
        self.bad += named
        return named

    def leave_out_bad(self, sentence: str) -> None:
        """Book a bad row: where it stands and what is wrong with it."""
        self.dropped[BAD] += 1
        if len(self.bad) < NAMED:
            self.bad.append(sentence)


class Chunk(Protocol):
    """A part of a split that goes to another process as it is."""

    def convert(self) -> tuple[list[Example], Account]:
        """The usable examples, and the account of all rows."""


@dataclass(frozen=True)
class Examples:
    """Examples, ready."""

    examples: list[Example]

    def convert(self) -> tuple[list[Example], Account]:
        return self.examples, Account()


@dataclass(frozen=True)
class Rows:
    """Rows of a source, each with the place where it stands; an exception stands for a row that cannot be read."""

    entry: Entry
    rows: list[tuple[str, Any]]

    def convert(self) -> tuple[list[Example], Account]:
        examples, account = [], Account()
        read, check, labels = self.entry.reader(), FAMILIES[self.entry.family].check, self.entry.label_names
        for where, row in self.rows:
            for place, part in _parts(self.entry, where, row):
                account.rows += 1
                try:
                    if isinstance(part, Exception):
                        raise part
                    example = read(part, place)
                    fault = check(example, labels)
                    if fault is not None:
                        raise BadRow(fault)
                    if self.entry.group is not None:
                        example["group"] = _group(self.entry.group, part)
                    examples.append(example)
                except LeaveOut as reason:
                    account.dropped[str(reason)] += 1
                except _WRONG as error:
                    account.leave_out_bad(f"{place}: {_reason(error)}")
        try:
            # all at once, for speed: that one of them cannot be written is rare
            orjson.dumps(examples)
        except TypeError:
            examples = [example for example in examples if _is_writable(example, account)]
        return examples, account


@dataclass
class Split:
    """One split of a dataset.

    Attributes:
        chunks: of its rows or examples; read only once.
        size: its number of examples where that is known beforehand.
        name: the dataset's.
        max_bad_share: largest share of bad rows.
        warn: called with one sentence for each of the first bad rows.
        account: complete once the chunks have been read.
    """

    chunks: Iterable[Chunk]
    size: int | None = None
    name: str = ""
    max_bad_share: float = 0
    warn: Callable[[str], Any] = lambda _: None
    account: Account = field(default_factory=Account)

    @property
    def examples(self) -> Iterator[Example]:
        """Its examples, converted one chunk after the other. Raises as :meth:`map`."""
        for examples in self.map(list):
            yield from examples

    def map(self, function: Callable[[list[Example]], Result], workers: Workers | None = None) -> Iterator[Result]:
        """Yield ``function(examples)`` for each chunk, in order, converted and called in ``workers``.

        Raises:
            MuppetError: the source cannot be read, or too many of its rows are bad.
        """
        return self.map_chunks(partial(_applied, function), workers or Workers())

    def map_chunks(self, function: Callable[[Chunk], tuple[Result, Account]], workers: Workers) -> Iterator[Result]:
        """As :meth:`map`, but with a function of the chunk that returns its account beside the result."""
        for result, account in workers.map(function, self.chunks):
            for bad in self.account.add(account):
                self.warn(f"{self.name}: left out {bad}")
            yield result
        bad = self.account.dropped[BAD]
        if bad > self.max_bad_share * self.account.rows:
            raise MuppetError(
                f"{self.name}: {bad} of {self.account.rows} rows cannot be used, more than --max-bad-share "
                f"{self.max_bad_share} allows; the first is {self.account.bad[0]}"
            )


def convert(
    entry: Entry,
    fetch: Fetch,
    max_bad_share: float,
    warn: Callable[[str], Any] = lambda _: None,
    workers: Workers | None = None,
    folder: Path | None = None,
) -> dict[str, Split]:
    """Convert a dataset.

    Args:
        entry: the dataset.
        fetch: gets the source's files.
        max_bad_share: largest share of bad rows that is left out with no more than a warning.
        warn: called with one sentence for each of the first bad rows of a split.
        workers: convert a split that is divided, which is done at once; the others are converted when they are read.
        folder: for a temporary file as large as a split that is divided; the system's folder for such if None.

    Returns:
        our split names to their examples. Rows left out before a split is divided are on the account of ``train``.

    Raises:
        MuppetError: the source cannot be read or has too many bad rows; for other splits than divided ones while
            they are read.
    """

    # where its rows come from does not go to other processes: it may hold all of them
    rest = replace(entry, source=None)

    def of_source(split: str) -> Split:
        rows = entry.source.rows(split, fetch)
        chunks = (Rows(rest, chunk) for chunk in _cut(rows, lambda row: _characters(row[1])))
        return Split(chunks, name=entry.name, max_bad_share=max_bad_share, warn=warn)

    if not isinstance(entry.splits, HeldOut):
        return {ours: of_source(theirs) for ours, theirs in entry.splits.items()}
    divided = _divided(of_source(entry.splits.of), entry.splits, workers or Workers(), folder)
    return divided | {ours: of_source(theirs) for ours, theirs in entry.splits.others.items()}


def hold_out(groups: np.ndarray, splits: HeldOut, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide examples into train and valid; no group is in both.

    The groups are permuted by ``splits.seed`` and the dataset's name, and those that still fit into the wanted
    size make up ``valid``. Within a split, groups stand together, in the order of their first example.

    Args:
        groups: something that is the same for all examples of a group, ``[n]``.
        splits: how many to hold out, and the seed.
        name: the dataset's.

    Returns:
        the numbers (from 0) of the training examples and of those held out, in order.
    """
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    group_of = rank[group_of]
    sizes = np.bincount(group_of).tolist()
    wanted = splits.valid if splits.valid >= 1 else round(splits.valid * len(groups))
    order = list(range(len(sizes)))
    random.Random(f"{name} {splits.seed}").shuffle(order)
    is_held, held = np.zeros(len(sizes), dtype=bool), 0
    for group in order:
        if held + sizes[group] <= wanted:
            is_held[group] = True
            held += sizes[group]
    by_group = np.argsort(group_of, kind="stable")
    is_valid = is_held[group_of[by_group]]
    return by_group[~is_valid], by_group[is_valid]


def chunked(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Cut examples into chunks by their number and characters."""
    return _cut(examples, _characters)


def _cut(items: Iterable[Item], characters_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    chunk, characters = [], 0
    for item in items:
        chunk.append(item)
        characters += characters_of(item)
        if len(chunk) == CHUNK_ITEMS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _characters(value: Any) -> int:
    """About how many characters a row has; of a long list only the first items are looked at."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        characters = 0
        for cell in value.values():
            # most cells are texts, and a call for each would take longer than all else here
            characters += len(cell) if type(cell) is str else _characters(cell)
        return characters
    if isinstance(value, list) and value:
        return len(value) * sum(map(_characters, value[:8])) // len(value[:8])
    return 1


class _Spool:
    """Examples in a temporary file, with the digests that dividing them takes."""

    def __init__(self, folder: Path | None) -> None:
        # it has no name: nothing is left of it when the program is killed
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- open as long as its splits are
        self._ends = array("q", [0])
        self.groups, self.contents = array("Q"), array("Q")

    def extend(self, lines: list[bytes], groups: list[int], contents: list[int]) -> None:
        for line in lines:
            self._file.write(line)
            self._ends.append(self._ends[-1] + len(line))
        self.groups.extend(groups)
        self.contents.extend(contents)

    def split(self, numbers: np.ndarray, source: Split, account: Account) -> Split:
        examples = map(self._example, numbers.tolist())
        return Split(map(Examples, chunked(examples)), len(numbers), source.name, source.max_bad_share, account=account)

    def _example(self, number: int) -> Example:
        begin, end = self._ends[number : number + 2]
        self._file.seek(begin)
        return orjson.loads(self._file.read(end - begin))


def _divided(source: Split, splits: HeldOut, workers: Workers, folder: Path | None) -> dict[str, Split]:
    spool = _Spool(folder)
    for part in source.map_chunks(_spooled, workers):
        spool.extend(*part)
    # the first of those with the same content, in the order of the rows
    first = np.sort(np.unique(np.array(spool.contents, dtype=np.uint64), return_index=True)[1])
    repeats = len(spool.contents) - len(first)
    if repeats:
        source.account.dropped[DUPLICATE] += repeats
    train, valid = hold_out(np.array(spool.groups, dtype=np.uint64)[first], splits, source.name)
    return {
        "train": spool.split(first[train], source, source.account),
        "valid": spool.split(first[valid], source, Account()),
    }


def _spooled(rows: Rows) -> tuple[tuple[list[bytes], list[int], list[int]], Account]:
    """The usable examples as JSON, and digests of their groups and contents."""
    examples, account = rows.convert()
    lines = [orjson.dumps(example) for example in examples]
    groups = [_digest(example.get("group", example["id"]).encode()) for example in examples]
    contents = [_digest(orjson.dumps({**example, "id": "", "group": ""})) for example in examples]
    return (lines, groups, contents), account


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _applied(function: Callable[[list[Example]], Result], chunk: Chunk) -> tuple[Result, Account]:
    examples, account = chunk.convert()
    return function(examples), account


def _parts(entry: Entry, where: str, row: Any) -> Iterable[tuple[str, Any]]:
    """The parts that a row is cut into, each with its place; for a row that cannot be cut, the exception."""
    if entry.parts is None or isinstance(row, Exception):
        return ((where, row),)
    try:
        return [(f"{where}#{number}", part) for number, part in enumerate(entry.parts(row), 1)]
    except (LeaveOut, *_WRONG) as error:
        return [(where, error)]


def _is_writable(example: Example, account: Account) -> bool:
    """Whether an example can be JSON in UTF-8; if it cannot, it is booked as bad."""
    try:
        orjson.dumps(example)
    except TypeError as error:
        account.leave_out_bad(f"{example['id']}: it cannot be written as JSON ({error})")
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, BadRow):
        return str(error)
    if isinstance(error, KeyError):
        return f"it has no field {error.args[0]!r}"
    return f"one of its fields has the wrong type or value ({error})"


def _group(group: Value, row: dict[str, Any]) -> str:
    """A short name for what a row shares with others; capitals, punctuation and spaces make no difference."""
    shared = str(value_of(group, row))
    words = " ".join(re.findall(r"\w+", shared.casefold()))
    return f"{_digest((words or shared).encode(errors='surrogatepass')):016x}"
