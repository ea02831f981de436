"""``python -m preprocess list | prepare | check | suites``."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muppet_fairseq.data.binarized import is_of
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.packages import default_cache
from muppet_fairseq.spec import read_dataset_json
from muppet_fairseq.suite import Suite
from preprocess.binarize import files_in, fingerprint
from preprocess.catalog import CATALOG, lookup
from preprocess.download import Fetch
from preprocess.entry import Entry
from preprocess.own import read_own
from preprocess.prepare import prepare
from preprocess.revisions import read_revisions
from preprocess.suites import write_suites


def list_datasets(family: str | None = None, own: Mapping[str, Entry] = MappingProxyType({})) -> str:
    """Return the catalog and ``own`` datasets as a table, of one family or of all.

    Raises MuppetError for an unknown family.
    """
    if family is not None and family not in FAMILIES:
        raise MuppetError(f"unknown family {family!r}{nearest(family, FAMILIES)}; known are {', '.join(FAMILIES)}")
    entries = [entry for entry in [*CATALOG.values(), *own.values()] if family in (None, entry.family)]
    rows = [(entry.name, entry.family, str(entry.source), entry.metric, entry.licence) for entry in entries]
    return table(("dataset", "family", "source", "metric", "licence"), rows)


def check(out: Path) -> tuple[int, list[str]]:
    """Compare the files of every dataset in ``out`` with the sizes and SHA-256 that its ``dataset.json`` lists.

    Returns:
        the number of datasets, and one sentence for each thing that is wrong.

    Raises:
        MuppetError: ``out`` is no folder with datasets.
    """
    if not out.is_dir():
        raise MuppetError(f"there is no folder {out}; make it with 'python -m preprocess prepare'")
    folders = [path for path in sorted(out.iterdir()) if path.is_dir() and path.name[0] != "."]
    folders = [folder for folder in folders if folder.name != "tokenizer"]
    if not folders:
        raise MuppetError(f"there are no datasets in {out}; make some with 'python -m preprocess prepare'")
    return len(folders), [problem for folder in folders for problem in _problems(folder, out)]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows in columns; those of numbers only are aligned to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [bool(rows) and all(isinstance(row[i], int) for row in rows) for i in range(len(header))]
    lines = []
    for line in cells:
        padded = zip(line, widths, right, strict=True)
        text = "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in padded)
        lines.append(text.rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _problems(folder: Path, out: Path) -> list[str]:
    try:
        meta = read_dataset_json(folder)
    except MuppetError as error:
        return [str(error)]
    problems = []
    dictionary = out / "dict.txt"
    if not dictionary.is_file() or meta["dictionary"] != dictionary_sha256(dictionary):
        problems.append(f"{folder} was binarised with another dictionary than {dictionary}; prepare it again")
    try:
        if not is_of(meta, Tokenizer.load(out / "tokenizer")):
            problems.append(f"{folder} was binarised with another tokenizer than {out / 'tokenizer'}; prepare it again")
    except MuppetError as error:
        problems.append(str(error))
    there = set(files_in(folder))
    for name, expected in meta["files"].items():
        if name not in there:
            problems.append(f"{folder / name} is missing; prepare the dataset again")
        elif fingerprint(folder / name) != expected:
            problems.append(f"{folder / name} is not the file that was written; prepare the dataset again")
    for name in sorted(there - set(meta["files"])):
        problems.append(f"{folder / name} does not belong to the dataset; remove it")
    return problems


def _summary(metas: Sequence[dict[str, Any]]) -> str:
    """The closing table. ``difference``: rows read less those published, of the splits of which a size is known."""
    rows = []
    for meta in metas:
        splits = meta["splits"]
        kept = " + ".join(str(split["examples"]) for split in splits.values())
        reasons = sum((Counter(split["dropped"]) for split in splits.values()), Counter())
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        known = [split for split in splits.values() if split["published"] is not None]
        published = sum(split["published"] for split in known)
        difference = sum(split["rows"] for split in known) - published
        sizes = (str(published), f"{difference:+d}" if difference else "none") if known else ("not known", "")
        rows.append((meta["name"], meta["family"], kept, "+".join(splits), reasons.total(), why, *sizes))
    return table(("dataset", "family", "kept", "splits", "dropped", "why", "published", "difference"), rows)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m preprocess", description="Datasets into data-bin.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show the datasets of the catalog")
    listing.add_argument("--family", help="only of this family")
    listing.add_argument("--own", type=Path, metavar="FILE", help="your own datasets, too, which this file describes")
    making = commands.add_parser("prepare", help="fetch, convert and binarise datasets")
    which = making.add_mutually_exclusive_group()
    which.add_argument("--suite", type=Path, metavar="FILE", help="prepare the datasets of this suite file")
    which.add_argument("--datasets", metavar="A,B", help="prepare these datasets")
    making.add_argument(
        "--own", type=Path, metavar="FILE", help="your own datasets, which this file describes; alone: all of them"
    )
    making.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer folder")
    making.add_argument("--out", type=Path, default=Path("data-bin"), metavar="DIR", help="default: data-bin")
    making.add_argument("--cache", type=Path, metavar="DIR", help="keeps downloads; default: $MUPPET_CACHE, else raw")
    making.add_argument("--raw", type=Path, metavar="DIR", help="take the files from here, download nothing")
    making.add_argument(
        "--max-bad-share",
        type=_share,
        default=0.01,
        metavar="S",
        help="stop a dataset with a larger share of unusable rows (default: 0.01)",
    )
    making.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="worker processes, and datasets at a time (default: 1)"
    )
    making.add_argument(
        "--revisions", type=Path, metavar="FILE", help="take these commits of the hub; default: OUT/revisions.json"
    )
    making.add_argument("--force", action="store_true", help="replace datasets that are already there")
    checking = commands.add_parser("check", help="compare a data-bin folder with what was written")
    checking.add_argument("out", type=Path, nargs="?", default=Path("data-bin"))
    drawing = commands.add_parser("suites", help="write the suites of the paper and its studies")
    drawing.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the suite files")
    drawing.add_argument("--seed", type=int, default=1, metavar="N", help="of what chance decides (default: 1)")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "check":
        count, problems = check(options.out)
        for problem in problems:
            print(f"muppet: {problem}", file=sys.stderr)
        if not problems:
            print(f"{options.out}: {count} datasets, all files as they were written")
        return bool(problems)
    if options.command == "suites":
        for file in write_suites(options.out, options.seed):
            print(file)
        return 0
    own = read_own(options.own) if options.own else {}
    if options.command == "list":
        print(list_datasets(options.family, own))
        return 0
    suite = options.suite or options.datasets
    if not suite and not own:
        raise MuppetError("name datasets with --datasets, --suite, or a file that describes your own with --own")
    entries = [lookup(name, own) for name in (Suite.load(suite).names if suite else own)]
    revisions = read_revisions(options.revisions) if options.revisions else {}
    fetch = Fetch(options.cache or default_cache(), options.raw, revisions)
    tokenizer = Tokenizer.load(options.tokenizer)
    ready, failures = prepare(
        entries, tokenizer, options.out, fetch, options.max_bad_share, options.force, options.jobs
    )
    if ready:
        print(_summary(ready))
    for failure in dict.fromkeys(failures):
        print(f"muppet: {failure}", file=sys.stderr)
    return bool(failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; what a user can mend is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    # what has been imported stays, and rows have no cycles: there is little to collect
    gc.freeze()
    gc.set_threshold(100_000)
    # importing fairseq lets every library log its debugging messages
    logging.getLogger().setLevel(logging.WARNING)
    try:
        return _run(options)
    except MuppetError as error:
        print(f"muppet: {error}", file=sys.stderr)
    except OSError as error:
        print(f"muppet: {error}; check the disk and the rights", file=sys.stderr)
    except KeyboardInterrupt:
        print("muppet: interrupted; finished datasets are kept, the next run makes the others", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
