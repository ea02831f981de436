"""Which datasets train together: :class:`Suite` reads the YAML and joins it with each ``dataset.json``.

A suite file is a list. An entry is a dataset's name, or a mapping with overrides::

    - rte
    - name: boolq
      examples: 1000      # train on this many, drawn by ``partition``
      partition: 2        # another draw (default 1)
      head: yes_no        # share a head with other datasets that name it
      metric: accuracy
    - name: snli
      examples: 2.5%      # or on this share of its training examples, rounded, at least one

Draws of one partition are nested: a larger one has all examples of a smaller one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import NAME, DatasetSpec, read_dataset_json
from muppet_fairseq.yaml_file import compose, items, place


@dataclass(frozen=True)
class SuiteEntry:
    """One line of a suite: a name, its overrides, and where it stands (``file, line n``) for errors.

    ``examples`` is a number of training examples, or as a fraction the share of them all.
    """

    name: str
    where: str
    examples: int | Fraction | None = None
    partition: int = 1
    head: str | None = None
    metric: str | None = None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[1-9][0-9]*", text) else None


def number_or_share(text: str) -> int | Fraction | None:
    """Read a number of examples (``100``) or their share (``2.5%``); None for what is neither."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", text):
        return _number(text)
    share = Fraction(text[:-1]) / 100
    return share if 0 < share <= 1 else None


_WORD = (str, "a word")
#: what reads an override's text (None: it is none), and what that text should be
_OVERRIDES: dict[str, tuple[Callable[[str], Any], str]] = {
    "name": _WORD,
    "examples": (number_or_share, "a positive whole number, or a share above 0% and up to 100%"),
    "partition": (_number, "a positive whole number"),
    "head": _WORD,
    "metric": _WORD,
}


class Suite:
    """An ordered list of :class:`SuiteEntry`; the order numbers the datasets."""

    def __init__(self, entries: Sequence[SuiteEntry]) -> None:
        self.entries = list(entries)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @classmethod
    def load(cls, suite: str | Path) -> Suite:
        """Read a suite file, or a comma-separated list of names where ``suite`` is no ``.yaml`` path.

        Raises MuppetError with the file and line of what is wrong.
        """
        if str(suite).endswith((".yaml", ".yml")):
            return cls(_read_yaml(Path(suite)))
        names = [name.strip() for name in str(suite).split(",")]
        return cls(_checked([SuiteEntry(name, f"suite {str(suite)!r}") for name in names]))

    def text(self) -> str:
        """The suite as a file."""
        return "".join(f"- {_line(entry)}\n" for entry in self.entries)

    def specs(self, data: str | Path) -> list[DatasetSpec]:
        """Join every entry with its ``dataset.json`` under ``data``. Raises MuppetError."""
        data = Path(data)
        if not data.is_dir():
            raise MuppetError(f"there is no folder {data}; make it with 'python -m preprocess prepare'")
        return [_spec(entry, data) for entry in self.entries]


def _line(entry: SuiteEntry) -> str:
    examples: Any = entry.examples
    if isinstance(examples, Fraction):
        examples = f"{float(examples * 100):.9f}".rstrip("0").rstrip(".") + "%"
    partition = None if entry.partition == 1 else entry.partition
    given = {"examples": examples, "partition": partition, "head": entry.head, "metric": entry.metric}
    return f"{{{', '.join(f'{k}: {v}' for k, v in {'name': entry.name, **given}.items() if v is not None)}}}"


def _read_yaml(path: Path) -> list[SuiteEntry]:
    root = compose(path, "the suite")
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise MuppetError(f"{path}: a suite is a list of dataset names ('- rte'), one or more")
    return _checked([_entry(node, path) for node in root.value])


def _entry(node: yaml.Node, path: Path) -> SuiteEntry:
    where = place(path, node)
    if isinstance(node, yaml.ScalarNode):
        return SuiteEntry(node.value, where)
    if not isinstance(node, yaml.MappingNode):
        raise MuppetError(f"{where}: an entry is a dataset's name or a mapping with 'name'")
    values: dict[str, Any] = {}
    for key, line, value_node in items(node, path, _OVERRIDES):
        read, wanted = _OVERRIDES[key]
        values[key] = read(value_node.value) if isinstance(value_node, yaml.ScalarNode) else None
        if values[key] is None:
            raise MuppetError(f"{line}: {key!r} takes {wanted}")
    if "name" not in values:
        raise MuppetError(f"{where}: this entry has no 'name'")
    return SuiteEntry(where=where, **values)


def _checked(entries: list[SuiteEntry]) -> list[SuiteEntry]:
    seen: dict[str, str] = {}
    for entry in entries:
        if not NAME.fullmatch(entry.name):
            raise MuppetError(
                f"{entry.where}: {entry.name[:150]!r} is no dataset name (letters, digits, '_' and '-' only)"
            )
        if entry.head is not None and not NAME.fullmatch(entry.head):
            raise MuppetError(f"{entry.where}: {entry.head[:150]!r} is no head name (letters, digits, '_' and '-')")
        if entry.name in seen:
            raise MuppetError(f"{entry.where}: {entry.name!r} is listed twice (first in {seen[entry.name]})")
        seen[entry.name] = entry.where
    return entries


def _spec(entry: SuiteEntry, data: Path) -> DatasetSpec:
    if not (data / entry.name).is_dir():
        there = sorted(p.parent.name for p in data.glob("*/dataset.json"))
        raise MuppetError(f"{entry.where}: there is no dataset {entry.name!r} in {data}{nearest(entry.name, there)}")
    meta = read_dataset_json(data / entry.name)
    if meta["family"] not in FAMILIES:
        path = data / entry.name / "dataset.json"
        raise MuppetError(f"{path}: unknown family {meta['family']!r}{nearest(meta['family'], FAMILIES)}")
    family, metric = FAMILIES[meta["family"]], entry.metric or meta["metric"]
    if metric not in family.metric_names:
        raise MuppetError(
            f"{entry.where}: {metric!r} is no metric of the family {family.name}"
            f"{nearest(metric, family.metric_names)}; it has {', '.join(family.metric_names)}"
        )
    labels, (fewest, most) = tuple(meta["labels"]), family.num_labels
    if not fewest <= len(labels) <= most:
        raise MuppetError(
            f"{data / entry.name / 'dataset.json'}: it names {len(labels)} classes, but a dataset of the family "
            f"{family.name} has {fewest} to {most}; prepare the dataset again"
        )
    return DatasetSpec(
        name=entry.name,
        family=family.name,
        metric=metric,
        labels=labels,
        num_inputs=meta["num_inputs"],
        head=entry.head,
        examples=_num_examples(entry, meta),
        partition=entry.partition,
    )


def _num_examples(entry: SuiteEntry, meta: dict[str, Any]) -> int | None:
    """How many training examples the entry asks for; None: all."""
    if not isinstance(entry.examples, Fraction):
        return entry.examples
    # data that are only evaluated on may have none
    there = meta["splits"]["train"]["examples"] if "train" in meta["splits"] else 0
    return max(1, round(entry.examples * there))
