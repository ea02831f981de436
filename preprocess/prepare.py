"""Preparing datasets: those that are up to date stay, the others are made again, several at a time if wanted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from muppet_fairseq.data.binarized import is_of
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import read_dataset_json
from preprocess.binarize import binarize
from preprocess.convert import convert
from preprocess.disk import disk_needed
from preprocess.download import Fetch
from preprocess.entry import Entry
from preprocess.jobs import Workers, in_threads
from preprocess.revisions import NAME, add_revisions, read_revisions


def prepare(
    entries: Sequence[Entry],
    tokenizer: Tokenizer,
    out: Path,
    fetch: Fetch,
    max_bad_share: float = 0.01,
    force: bool = False,
    jobs: int = 1,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Fetch, convert and binarise datasets into ``out``, where those that are up to date stay as they are.

    A dataset that fails does not keep the others from being prepared. With several ``jobs``, so many processes convert
    and tokenise, and as many datasets are prepared at a time: a large one has all processes to itself in the end.

    The commits of the hub's branches are those of ``fetch.revisions``, else those that were taken for ``out`` before.
    A dataset made from another one is made again.

    Returns:
        the ``dataset.json`` of each dataset that is ready, and one sentence for each that failed.

    Raises:
        MuppetError: ``out`` or a dataset in it belongs to another tokenizer, and ``force`` is not set; or its
            ``revisions.json`` is damaged; or the downloads do not fit on the disk.
    """
    _claim(out, tokenizer, force)
    revisions = out / NAME
    for branch, commit in (read_revisions(revisions) if revisions.exists() else {}).items():
        fetch.revisions.setdefault(branch, commit)
    stale = {entry.name: _is_stale(entry, tokenizer, out, fetch, force) for entry in entries}
    ready = {name: read_dataset_json(out / name) for name, is_stale in stale.items() if not is_stale}
    failures = []
    wanted = [entry for entry in entries if stale[entry.name]]
    if not wanted:
        return [ready[entry.name] for entry in entries], []
    # before the hub's client has threads
    with Workers(jobs) as workers:
        if fetch.raw is None:
            for entry in wanted:
                # before anything is fetched, so that all datasets of a repository are of one commit, whatever happens
                with suppress(MuppetError):
                    entry.source.identity(fetch)
            add_revisions(revisions, fetch.revisions)
        need = disk_needed(wanted, fetch, out)
        tqdm.write(str(need))
        need.check()
        make = partial(_make, tokenizer, out, fetch, max_bad_share, workers)
        done = map(make, wanted) if jobs == 1 else in_threads(make, wanted, jobs)
        for entry, result in zip(wanted, done, strict=True):
            if isinstance(result, MuppetError):
                failures.append(str(result))
            else:
                ready[entry.name] = result
    return [ready[entry.name] for entry in entries if entry.name in ready], failures


def _make(
    tokenizer: Tokenizer, out: Path, fetch: Fetch, max_bad_share: float, workers: Workers, entry: Entry
) -> dict[str, Any] | MuppetError:
    """Prepare one dataset and return its ``dataset.json``, or why it cannot be made."""
    with tqdm(desc=entry.name, unit=" examples", disable=None) as bar:
        try:
            revision = entry.source.identity(fetch)
            entry = entry.completed(fetch)
            splits = convert(entry, fetch, max_bad_share, _say, workers, out)
            # of a split that is read as it is converted, what its authors say
            sizes = [entry.published.get(name) if split.size is None else split.size for name, split in splits.items()]
            bar.total = None if None in sizes else sum(sizes)
            return binarize(entry, splits, tokenizer, out, bar.update, workers, revision)
        except MuppetError as error:
            return error


def _claim(out: Path, tokenizer: Tokenizer, force: bool) -> None:
    """Make ``out`` a folder of this tokenizer's datasets."""
    dictionary = out / "dict.txt"
    # dict.txt is written last: a folder with it has its tokenizer, too
    if dictionary.is_file() and (out / "tokenizer").is_dir():
        there = Tokenizer.load(out / "tokenizer")
        same_dictionary = dictionary_sha256(dictionary) == dictionary_sha256(tokenizer.folder / "dict.txt")
        if there.sha256 == tokenizer.sha256 and same_dictionary:
            return
        if not force:
            raise MuppetError(
                f"{out} was binarised with another tokenizer or dictionary than {tokenizer.folder}; choose "
                f"another --out, or --force to replace its datasets that you name"
            )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer")
    temporary = out / ".dict.txt.partial"
    shutil.copyfile(tokenizer.folder / "dict.txt", temporary)
    temporary.replace(dictionary)


def _is_stale(entry: Entry, tokenizer: Tokenizer, out: Path, fetch: Fetch, force: bool) -> bool:
    """Whether the dataset must be made (again)."""
    folder = out / entry.name
    if force:
        return True
    try:
        meta = read_dataset_json(folder)
    except MuppetError:  # unfinished, damaged, or of another version of this package
        return True
    same = meta["dictionary"] == dictionary_sha256(tokenizer.folder / "dict.txt")
    if not same or not is_of(meta, tokenizer):
        raise MuppetError(
            f"{folder} was binarised with another tokenizer or dictionary than {tokenizer.folder}; --force replaces it"
        )
    return meta["entry"] != entry.sha256() or _is_of_other_commit(meta["revision"], fetch)


def _is_of_other_commit(revision: dict[str, str] | None, fetch: Fetch) -> bool:
    if revision is None or "commit" not in revision:
        return False
    return fetch.revisions.get(f"{revision['repo']}@{revision['revision']}", revision["commit"]) != revision["commit"]


def _say(sentence: str) -> None:
    tqdm.write(f"muppet: {sentence}", file=sys.stderr)
