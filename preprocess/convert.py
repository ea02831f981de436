"""From an entry's rows to canonical examples, with an account of every row that is left out.

A row is left out because the entry does so by design (:class:`LeaveOut`), because it is bad (a field is missing, the
label is none of the classes, the answer does not stand where it should), or because it repeats an earlier one of a
split that is divided: the two might come to stand on both sides. Splits that the source has stay as published.
More bad rows than ``max_bad_share`` mean that the source is not what the entry says: the dataset stops.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from preprocess.download import Fetch
from preprocess.entry import BadRow, Entry, HeldOut, LeaveOut, value_of

Example = dict[str, Any]

BAD = "bad row"
DUPLICATE = "duplicate"
#: so many bad rows are named, the others only counted
NAMED = 10
#: what a field's function raises for a row that is not as it expects
_WRONG = (BadRow, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass
class Account:
    """What became of the rows of one source split."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    #: the first bad row: where it stands and what is wrong with it
    first_bad: str = ""


@dataclass
class Split:
    """The examples of one split. ``account`` is complete once they have been iterated over.

    ``size`` is the number of examples where it is known beforehand.
    """

    examples: Iterable[Example]
    account: Account
    size: int | None = None


def convert(
    entry: Entry, fetch: Fetch, max_bad_share: float, warn: Callable[[str], None] = lambda _: None
) -> dict[str, Split]:
    """Convert a dataset.

    Args:
        entry: the dataset.
        fetch: gets the source's files.
        max_bad_share: largest share of bad rows that is left out with no more than a warning.
        warn: called with one sentence for each of the first bad rows of a split.

    Returns:
        our split names to their examples. Splits that the source has are streamed; held-out ones are in memory
        (a row's split depends on all rows), and rows left out before the split are on the account of ``train``.

    Raises:
        MuppetError: the source cannot be read or has too many bad rows; for streamed splits while iterating.
    """
    splits = {}
    published = entry.splits
    if isinstance(published, HeldOut):
        account = Account()
        grouped = list(_without_repeats(_examples(entry, published.of, fetch, max_bad_share, account, warn), account))
        train, valid = hold_out(grouped, published, entry.name)
        splits = {"train": Split(train, account, len(train)), "valid": Split(valid, Account(), len(valid))}
        published = published.others
    for ours, theirs in published.items():
        account = Account()
        grouped = _examples(entry, theirs, fetch, max_bad_share, account, warn)
        splits[ours] = Split((example for _, example in grouped), account)
    return splits


def hold_out(
    grouped: list[tuple[Hashable, Example]], splits: HeldOut, name: str
) -> tuple[list[Example], list[Example]]:
    """Split (group, example) pairs into train and valid; no group is in both.

    The groups are permuted by ``splits.seed`` and the dataset's name, and those that still fit into the wanted
    size make up ``valid``. Within a split, groups stand together, in the order of their first example.
    """
    groups: dict[Hashable, list[Example]] = {}
    for group, example in grouped:
        groups.setdefault(group, []).append(example)
    wanted = splits.valid if splits.valid >= 1 else round(splits.valid * len(grouped))
    order = list(groups)
    random.Random(f"{name} {splits.seed}").shuffle(order)
    held, size = set(), 0
    for group in order:
        if size + len(groups[group]) <= wanted:
            held.add(group)
            size += len(groups[group])
    train = [example for group, examples in groups.items() if group not in held for example in examples]
    valid = [example for group, examples in groups.items() if group in held for example in examples]
    return train, valid


def _examples(
    entry: Entry,
    split: str,
    fetch: Fetch,
    max_bad_share: float,
    account: Account,
    warn: Callable[[str], None],
) -> Iterator[tuple[Hashable, Example]]:
    """Yield (group, example) for each usable row, booking the others."""
    for where, part in _parts(entry, split, fetch):
        account.rows += 1
        try:
            if isinstance(part, Exception):
                raise part
            example = entry.example(part)
            _check(entry, example)
            group = _group(entry, part, where)
        except LeaveOut as reason:
            account.dropped[str(reason)] += 1
            continue
        except _WRONG as error:
            account.dropped[BAD] += 1
            sentence = f"{where}: {_reason(error)}"
            account.first_bad = account.first_bad or sentence
            if account.dropped[BAD] <= NAMED:
                warn(f"{entry.name}: left out {sentence}")
            continue
        yield group, {"id": where, **example}
    bad = account.dropped[BAD]
    if bad > max_bad_share * account.rows:
        raise MuppetError(
            f"{entry.name}: {bad} of {account.rows} rows cannot be used, more than --max-bad-share "
            f"{max_bad_share} allows; the first is {account.first_bad}"
        )


def _parts(entry: Entry, split: str, fetch: Fetch) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) after cutting rows into parts; for a row that cannot be cut, the exception."""
    for where, row in entry.source.rows(split, fetch):
        if entry.parts is None or isinstance(row, Exception):
            yield where, row
            continue
        try:
            parts = list(entry.parts(row))
        except (LeaveOut, *_WRONG) as error:
            yield where, error
        else:
            yield from ((f"{where}#{number}", part) for number, part in enumerate(parts, 1))


def _reason(error: Exception) -> str:
    if isinstance(error, BadRow):
        return str(error)
    if isinstance(error, KeyError):
        return f"it has no field {error.args[0]!r}"
    return f"one of its fields has the wrong type or value ({error})"


def _without_repeats(
    grouped: Iterable[tuple[Hashable, Example]], account: Account
) -> Iterator[tuple[Hashable, Example]]:
    """Drop examples of which an earlier one has the same content, booking them."""
    seen: set[bytes] = set()
    for group, example in grouped:
        content = {key: value for key, value in example.items() if key != "id"}
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()
        if digest in seen:
            account.dropped[DUPLICATE] += 1
        else:
            seen.add(digest)
            yield group, example


def _check(entry: Entry, example: Example) -> None:
    """Raise BadRow if the family cannot use the example."""
    try:
        reason = FAMILIES[entry.family].check(example, entry.label_names)
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("it holds half of a character (a lone surrogate)") from None
    if reason is not None:
        raise BadRow(reason)


def _group(entry: Entry, row: dict[str, Any], where: str) -> Hashable:
    """What a row shares with those of its group; capitals, punctuation and spaces make no difference."""
    if not isinstance(entry.splits, HeldOut) or entry.splits.group is None:
        return where
    shared = str(value_of(entry.splits.group, row))
    return " ".join(re.findall(r"\w+", shared.casefold())) or shared
