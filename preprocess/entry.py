"""What the catalog says of one dataset: :class:`Entry`, and how its rows are split: :class:`HeldOut`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from preprocess.download import Fetch, Source
from preprocess.rows import BadRow, Row
from preprocess.rows import LeaveOut as LeaveOut  # for who writes entries

#: the licence of a dataset whose authors name none
UNSTATED = "not stated by the authors"

#: how a value of the example is got from a row: a column, several, or a function
Value = str | Sequence["Value"] | Callable[[Row], Any]


@dataclass(frozen=True)
class HeldOut:
    """Rows of one source split, part of them held out as ``valid`` by a seeded permutation of the entry's groups.

    Attributes:
        valid: share of the examples (below 1) or their number; groups stay whole, so it may be slightly less.
        of: the source's split.
        seed: another number gives another permutation.
        others: our names of further splits to the source's, taken as they are.
    """

    valid: float
    of: str = "train"
    seed: int = 1
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One dataset, declared.

    Attributes:
        name: the name in suites and in ``data-bin``.
        family: a key of ``muppet_fairseq.families.FAMILIES``.
        source: where the rows come from; None where the rows are at hand.
        fields: the example's keys (as the family names them) to columns, lists of columns or functions of a row.
        splits: :class:`HeldOut`, or our split names to the source's.
        labels: classification: the classes in order, or the raw values in order with the names to give them;
            without any, a ``label`` is a number. Tagging: the tags; without any, those of the training examples.
        metric: one of the family's.
        group: column or function whose value is the same for examples about the same thing, as two questions about
            one passage, and no independent ones: none are torn apart where some are held out, and a report's tests
            take them together. None: each example is its own group.
        parts: where one row holds several examples: cuts it into rows.
        licence: as the dataset's authors state it.
        citation: the paper to cite.
        published: our split names to the number of examples that its authors or the hub state, before anything is
            left out; of :class:`HeldOut`, ``train`` is the published split, before ``valid`` is held out.
        alias: another entry's name: the two hold the same training examples.
        note: what a user should know.
    """

    name: str
    family: str
    source: Source | None
    fields: Mapping[str, Value]
    splits: HeldOut | Mapping[str, str]
    metric: str
    licence: str
    citation: str
    labels: Sequence[str] | Mapping[str, str] = ()
    group: Value | None = None
    parts: Callable[[Row], Iterable[Row]] | None = None
    published: Mapping[str, int] = field(default_factory=dict)
    alias: str = ""
    note: str = ""

    @property
    def label_names(self) -> list[str]:
        """The classes' names in order; empty where the family has no classes."""
        return list(self.labels.values() if isinstance(self.labels, Mapping) else self.labels)

    @property
    def split_names(self) -> list[str]:
        """Our names of its splits."""
        if isinstance(self.splits, HeldOut):
            return ["train", "valid", *self.splits.others]
        return list(self.splits)

    @property
    def source_splits(self) -> list[str]:
        """The names of the source's splits that are read."""
        if isinstance(self.splits, HeldOut):
            return [self.splits.of, *self.splits.others.values()]
        return list(self.splits.values())

    def completed(self, fetch: Fetch) -> Entry:
        """The entry with what only the source's own files say of the dataset.

        Raises:
            MuppetError: they cannot be fetched or read.
        """
        return self

    def reader(self) -> Callable[[Row, str], dict[str, Any]]:
        """Return the function that makes the canonical example of a row and its ``id``.

        It raises LeaveOut for a row that the entry leaves out, and BadRow or what :mod:`preprocess.convert` takes for
        one where the row is not as the fields expect.
        """
        getters = [(key, getter(spec)) for key, spec in self.fields.items()]
        names = self.labels if isinstance(self.labels, Mapping) else {}
        has_number = "label" in self.fields and not self.labels
        has_class = "label" in self.fields and not has_number

        def read(row: Row, id: str) -> dict[str, Any]:
            example = {"id": id}
            for key, get in getters:
                example[key] = get(row)
            if has_class:
                raw = str(example["label"])
                example["label"] = names.get(raw, raw)
            elif has_number:
                example["label"] = float(example["label"])
            return example

        return read

    def sha256(self) -> str:
        """Fingerprint of the whole definition, the code of its functions included."""
        return hashlib.sha256(_definition(self).encode()).hexdigest()


def value_of(spec: Value, row: Row) -> Any:
    """Get a value from a row as ``spec`` says. Raises KeyError (no such column), LeaveOut or BadRow."""
    return getter(spec)(row)


def getter(spec: Value) -> Callable[[Row], Any]:
    """Return :func:`value_of` for one ``spec``, as a function of a row."""
    if callable(spec):
        return spec
    if not isinstance(spec, str):
        parts = [getter(part) for part in spec]
        return lambda row: [part(row) for part in parts]

    def column(row: Row) -> Any:
        value = row[spec]
        if value is None:
            raise BadRow(f"its field {spec!r} is empty")
        if isinstance(value, bytes):
            raise BadRow(f"its field {spec!r} is not UTF-8")
        return value

    return column


def _definition(value: Any) -> str:
    """A text that is the same in every process for the same definition, and different for another."""
    if is_dataclass(value):
        # the fields' classes are code like functions; an Entry's and a Source's own code is the format's
        code = inspect.getsource(type(value)) if callable(value) else type(value).__name__
        # what is not compared says where a thing lies, not what it is
        values = [getattr(value, field.name) for field in fields(value) if field.compare]
        return f"{code}({', '.join(map(_definition, values))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_definition(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_definition, value))}]"
    return inspect.getsource(value) if callable(value) else repr(value)
