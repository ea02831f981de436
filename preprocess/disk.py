"""How much disk a preparation needs, said before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from muppet_fairseq.errors import MuppetError
from preprocess.download import Fetch
from preprocess.entry import Entry

#: bytes of data-bin for each byte read, measured on all mini datasets of a family with GPT-2's vocabulary, without
#: the copies of dict.txt: 0.60 to 0.75 for JSON lines; for the same rows as Parquet (Snappy) 1.25 to 1.32, and 3.8 for
#: mrc, which stores where each token stands. What a file has beside the columns that are used makes it too much
_OF_TEXT = 0.7
_OF_COMPRESSED = 1.3
_OF_COMPRESSED_MRC = 4.0
_COMPRESSED = (".parquet", ".gz", ".zip")


@dataclass(frozen=True)
class DiskNeed:
    """What preparing datasets needs, and what there is, in bytes.

    Attributes:
        downloads: each dataset's files that are still to be fetched; None where that is not known. A file that several
            datasets read counts for the first.
        binarised: an estimate of each dataset's data-bin; None where its files' sizes are not known.
        cache: the folder of the downloads, and what is free there.
        out: the data-bin folder, and what is free there.
    """

    downloads: dict[str, int | None]
    binarised: dict[str, int | None]
    cache: tuple[Path, int]
    out: tuple[Path, int]

    def __str__(self) -> str:
        """One line for the user."""
        unknown = sum(size is None for size in self.downloads.values())
        return (
            f"downloads {_readable(_total(self.downloads))} to {self.cache[0]} ({_readable(self.cache[1])} free), "
            f"writes about {_readable(_total(self.binarised))} to {self.out[0]} ({_readable(self.out[1])} free)"
            + (f"; of {unknown} datasets the size is not known" if unknown else "")
        )

    def check(self) -> None:
        """Raise MuppetError if the downloads, as far as they are known, cannot fit.

        The data-bin's size is only an estimate, and stops nobody.
        """
        needed, (cache, free) = _total(self.downloads), self.cache
        if needed > free:
            raise MuppetError(
                f"the downloads need {_readable(needed)}, but {cache} has {_readable(free)} free; name another "
                f"folder with --cache, or prepare fewer datasets"
            )


def disk_needed(entries: Sequence[Entry], fetch: Fetch, out: Path) -> DiskNeed:
    """Ask the sources of datasets how large their files are; nothing of them is downloaded."""
    downloads: dict[str, int | None] = {}
    binarised: dict[str, int | None] = {}
    counted: set[str] = set()
    for entry in entries:
        try:
            # where only the rows tell the splits, all that there are
            files = entry.source.files(entry.source_splits or ["*"], fetch)
        except MuppetError:  # preparing the dataset will say it
            files = None
        if files is None:
            downloads[entry.name] = binarised[entry.name] = None
            continue
        missing = {file.name: file.size for file in files if not file.is_here and file.name not in counted}
        counted |= missing.keys()
        downloads[entry.name] = sum(missing.values())
        binarised[entry.name] = round(sum(file.size * _growth(entry.family, file.name) for file in files))
    return DiskNeed(downloads, binarised, (fetch.cache, _free(fetch.cache)), (out, _free(out)))


def _growth(family: str, name: str) -> float:
    if PurePath(name).suffix not in _COMPRESSED:
        return _OF_TEXT
    return _OF_COMPRESSED_MRC if family == "mrc" else _OF_COMPRESSED


def _free(folder: Path) -> int:
    """Bytes that are free where the folder is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _total(sizes: dict[str, int | None]) -> int:
    return sum(filter(None, sizes.values()))


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
