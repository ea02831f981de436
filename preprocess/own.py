"""Users' own datasets, without code: a folder of files each, and a few lines of one YAML file (:func:`read_own`)::

    reviews:
      family: classification
      folder: reviews            # from where this file is; default: the dataset's name
      fields: {inputs: [title, body], label: stars}
      labels: [bad, good]        # the classes in order, or raw values with their names: {1: bad, 5: good}
      valid: 0.1                 # hold out of train, where there are no files of valid
      group: film                # a column: what rows about the same thing share; kept together, and tested together

A split's rows are in one file, ``train.jsonl``, ``train.csv``, ``train.tsv`` (each also with ``.gz``) or
``train.parquet``, or in several, ``train-*.jsonl`` and so on. CSV and TSV have the columns' names in their first line
and are quoted as spreadsheets do it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

import yaml

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.spec import NAME
from muppet_fairseq.yaml_file import compose, items
from preprocess.catalog import CATALOG
from preprocess.cells import WAYS, Answer, Answers, Cell, Choices, ClassName, Items, Tags, plain
from preprocess.download import Fetch, Source, SourceFile, check_columns, csv_rows, json_rows, parquet_rows
from preprocess.entry import UNSTATED, Entry, HeldOut, Value
from preprocess.fields import Joined
from preprocess.originals import read_rows
from preprocess.rows import RowIterator

_KEYS = ("family", "folder", "fields", "labels", "answer_is", "metric", "splits", "valid", "group")
_KEYS += ("licence", "citation", "note")
#: the fields of each family, with the most columns that one may name
_FIELDS: dict[str, dict[str, float]] = {
    "classification": {"inputs": 2, "label": 1},
    "regression": {"inputs": 2, "label": 1},
    "commonsense": {"context": float("inf"), "choices": float("inf"), "answer": 1},
    "mrc": {"question": float("inf"), "passage": 1, "answers": 1},
    "summarization": {"source": float("inf"), "target": 1},
    "tagging": {"words": 1, "tags": 1},
}
#: metrics of examples with more fields than these
_OTHERS_METRICS = ("multirc", "record", "bracket_f1")


_READERS = {".jsonl": json_rows, ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t")}


@dataclass(frozen=True)
class LocalFiles(Source):
    """Files in a folder of the user's; a split is the beginning of their names.

    Attributes:
        folder: where they are.
        name: what errors call the folder.
        versions: each split's files with their sizes and times, so that a change makes another fingerprint.
    """

    folder: Path = field(compare=False)
    name: str
    versions: Mapping[str, Sequence[tuple[str, int, int]]]

    @classmethod
    def of(cls, folder: Path, name: str, splits: Collection[str]) -> LocalFiles:
        """The files of these splits as they are now."""
        found = {split: [(file.name, file.stat()) for file in _files(folder, split)] for split in splits}
        versions = {split: [(name, s.st_size, s.st_mtime_ns) for name, s in files] for split, files in found.items()}
        return cls(folder, name, versions)

    def __str__(self) -> str:
        return f"own files in {self.name}"

    def is_in(self, raw: Path) -> bool:
        return False  # they have a folder of their own

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile]:
        return [
            SourceFile(str(file), file.stat().st_size, True) for split in splits for file in _files(self.folder, split)
        ]

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        files = _files(self.folder, split)
        if not files:
            raise MuppetError(
                f"there is no file {self.folder / split}.jsonl, nor one with .csv, .tsv or .parquet; put it there, say "
                f"its name under 'splits', or let 'valid: 0.1' hold examples out of train"
            )
        formats = {_format(file) for file in files}
        if len(formats) > 1:
            raise MuppetError(
                f"{self.folder} has the split {split!r} in several forms, as {files[0].name} and {files[-1].name}; "
                f"keep one"
            )
        if formats == {".parquet"}:
            check_columns({f"{self.name}/{file.name}": file for file in files})
        for file in files:
            name = f"{self.name}/{file.name}"
            if formats == {".parquet"}:
                yield from parquet_rows(name, file)
            else:
                yield from read_rows(file, name, _READERS[_format(file).removesuffix(".gz")])


def _files(folder: Path, split: str) -> list[Path]:
    """A split's files: those that bear its name alone, else those with more after a hyphen."""
    if not folder.is_dir():
        return []
    ends = r"\.(parquet|(jsonl|csv|tsv)(\.gz)?)"
    for more in ("", "-.*"):
        fitting = re.compile(re.escape(split) + more + ends)
        files = sorted(file for file in folder.iterdir() if fitting.fullmatch(file.name))
        if files:
            return files
    return []


def _format(file: Path) -> str:
    return "".join(file.suffixes[-2:] if file.suffix == ".gz" else file.suffixes[-1:])


def read_own(path: Path) -> dict[str, Entry]:
    """Return the entries of the datasets that a YAML file describes, by their names.

    Raises MuppetError with the file and line of what is wrong.
    """
    root = compose(path, "the file of own datasets")
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise MuppetError(f"{path}: own datasets are a mapping of names to definitions ('reviews: {{family: ...}}')")
    return {name: _entry(name, where, node, path) for name, where, node in items(root, path)}


def _entry(name: str, where: str, node: yaml.Node, path: Path) -> Entry:
    if not NAME.fullmatch(name):
        raise MuppetError(f"{where}: {name!r} is no dataset name (letters, digits, '_' and '-' only)")
    if name in CATALOG or name == "tokenizer":  # data-bin/tokenizer is no dataset
        raise MuppetError(f"{where}: the name {name!r} is taken; choose another")
    if not isinstance(node, yaml.MappingNode):
        raise MuppetError(f"{where}: a dataset's definition is a mapping with 'family' and 'fields'")
    given = _Definition(name, where, node, path)
    family = given.word("family", known=_FIELDS)
    folder = given.folder()
    place_of_files = path.parent / folder
    names = given.labels(family)
    metrics = [metric for metric in FAMILIES[family].metric_names if metric not in _OTHERS_METRICS]
    metric = given.word("metric", metrics[0], known=metrics)
    splits = given.splits(place_of_files)
    stems = [splits.of, *splits.others.values()] if isinstance(splits, HeldOut) else list(splits.values())
    return Entry(
        name=name,
        family=family,
        source=LocalFiles.of(place_of_files, folder, stems),
        fields=given.fields(family, names, metric),
        splits=splits,
        labels=tuple(dict.fromkeys(names.values())),
        metric=metric,
        group=Cell(given.word("group")) if "group" in given.given else None,
        licence=given.word("licence", UNSTATED),
        citation=given.word("citation", ""),
        note=given.word("note", ""),
    )


class _Definition:
    """The keys of one dataset's definition; errors name their lines."""

    def __init__(self, name: str, where: str, node: yaml.MappingNode, path: Path) -> None:
        self.name, self.where, self.path = name, where, path
        self.given = {key: (line, value) for key, line, value in items(node, path, _KEYS)}

    def word(self, key: str, default: str | None = None, known: Collection[str] = ()) -> str:
        """The text of a key; None as ``default``: it must be there."""
        if key not in self.given:
            if default is None:
                raise MuppetError(f"{self.where}: {self.name!r} has no {key!r}")
            return default
        where, node = self.given[key]
        (word,) = self._words(key, where, node, most=1)
        if known and word not in known:
            raise MuppetError(f"{where}: unknown {key} {word!r}{nearest(word, known)}; known are {', '.join(known)}")
        return word

    def folder(self) -> str:
        """Where the dataset's files are: in or below the folder of the file that describes it."""
        folder = self.word("folder", self.name)
        parts = PurePath(folder).parts
        if PurePath(folder).is_absolute() or ".." in parts or max(map(len, parts), default=0) > 255 or "\0" in folder:
            raise MuppetError(
                f"{self.given['folder'][0]}: the folder {folder[:150]!r} is not below the one of this file; name one "
                f"that is, or put a link to it there"
            )
        return folder

    def mapping(self, key: str, known: Collection[str] | None = None) -> dict[str, tuple[str, yaml.Node]]:
        """The keys that a key's mapping has, with where they stand and their values; empty if it is not given."""
        if key not in self.given:
            return {}
        where, node = self.given[key]
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise MuppetError(f"{where}: {key!r} takes a mapping, '{{name: ...}}'")
        return {name: (line, value) for name, line, value in items(node, self.path, known)}

    def labels(self, family: str) -> dict[str, str]:
        """Raw values, as :func:`preprocess.cells.plain` gives them, to the classes' names, in the classes' order."""
        if "labels" not in self.given:
            if family == "classification":
                raise MuppetError(f"{self.where}: {self.name!r} has no 'labels', the classes in order: [no, yes]")
            return {}
        where, node = self.given["labels"]
        if family not in ("classification", "tagging"):
            raise MuppetError(f"{where}: datasets of the family {family} have no 'labels'; leave them out")
        if isinstance(node, yaml.MappingNode):
            pairs = [
                (raw, *self._words(raw, line, value, most=1)) for raw, (line, value) in self.mapping("labels").items()
            ]
        else:
            names = self._words("labels", where, node)
            pairs = list(zip(names, names, strict=True))
            if not any(re.fullmatch(r"-?[0-9]+", plain(name)) for name in names):
                pairs += [(str(number), name) for number, name in enumerate(names)]
        raws = [plain(raw) for raw, _ in pairs]
        twice = [raw for raw in raws if raws.count(raw) > 1]
        if twice:
            raise MuppetError(f"{where}: 'labels' has {twice[0]!r} twice")
        if len({name for _, name in pairs}) < 2:
            raise MuppetError(f"{where}: 'labels' takes two classes or more")
        return dict(zip(raws, (name for _, name in pairs), strict=True))

    def fields(self, family: str, names: Mapping[str, str], metric: str) -> dict[str, Value]:
        """The family's fields, each as a function of a row."""
        known, where = _FIELDS[family], self.given.get("fields", (self.where,))[0]
        columns = {
            key: self._words(key, line, value, most=known[key])
            for key, (line, value) in self.mapping("fields", known).items()
        }
        missing = [key for key in known if key not in columns]
        if missing:
            raise MuppetError(f"{where}: 'fields' has no {missing[0]!r}; the family {family} has {', '.join(known)}")
        if "answer_is" in self.given and family != "commonsense":
            raise MuppetError(f"{self.given['answer_is'][0]}: 'answer_is' is for the family commonsense; leave it out")
        return {key: self._field(key, columns, names, metric) for key in columns}

    def _field(self, key: str, columns: Mapping[str, list[str]], names: Mapping[str, str], metric: str) -> Value:
        own = columns[key]
        match key:
            case "inputs":
                return [Cell(column, required=False) for column in own]
            case "label":
                return ClassName(own[0], names) if names else Cell(own[0])
            case "choices":
                return Choices(tuple(own))
            case "answer":
                way = self.word("answer_is", known=WAYS) if "answer_is" in self.given else None
                return Answer(own[0], Choices(tuple(columns["choices"])), way)
            case "answers":
                return Answers(own[0], columns["passage"][0], may_be_none=metric == "squad_v2")
            case "words":
                return Items(own[0], spaced=True)
            case "tags":
                return Tags(own[0], names)
        return Cell(own[0]) if len(own) == 1 else Joined(*(Cell(column, required=False) for column in own))

    def splits(self, folder: Path) -> HeldOut | dict[str, str]:
        """Our split names to how the names of their files begin, or what is held out of train."""
        given = self.mapping("splits")
        stems = {split: self._words(split, line, value, most=1)[0] for split, (line, value) in given.items()}
        for split, (line, _) in given.items():
            if not NAME.fullmatch(split):
                raise MuppetError(f"{line}: {split!r} is no name of a split (letters, digits, '_' and '-' only)")
        if not stems:
            stems = {split: split for split in ("train", "valid", "test") if split == "train" or _files(folder, split)}
        if "train" not in stems:
            raise MuppetError(f"{self.given['splits'][0]}: 'splits' has no 'train'")
        if "valid" not in self.given:
            return {"train": stems.pop("train"), "valid": stems.pop("valid", "valid"), **stems}
        where = self.given["valid"][0]
        if "valid" in stems:
            raise MuppetError(f"{where}: there are files of 'valid' already, nothing is held out; leave this line out")
        return HeldOut(self._size(), of=stems.pop("train"), others=stems)

    def _size(self) -> float:
        text = self.word("valid")
        if re.fullmatch(r"0?\.[0-9]*[1-9][0-9]*", text):
            return float(text)
        if re.fullmatch(r"[1-9][0-9]*", text):
            return int(text)
        raise MuppetError(f"{self.given['valid'][0]}: 'valid' takes a share below 1, or a number of examples")

    def _words(self, key: str, where: str, node: yaml.Node, most: float = float("inf")) -> list[str]:
        """The texts of a list, or of a text alone; not more than ``most``."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(each, yaml.ScalarNode) and each.value for each in nodes) or not 1 <= len(nodes) <= most:
            wanted = {1: "a word", 2: "a word, or a list of two"}.get(most, "a list of words")
            raise MuppetError(f"{where}: {key!r} takes {wanted}")
        return [each.value for each in nodes]
