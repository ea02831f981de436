"""Datasets of the package tasksource, where it is installed: ``tasksource-glue_rte`` is its task ``glue/rte``.

The rows come from the hub's conversion of the task's repository to Parquet, or from a mirror of it (``--raw``). What
becomes of them is tasksource's own doing: examples, splits and classes are those of its ``load_task``, but for the
choices of a question, which are all kept.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from preprocess.cells import Cell
from preprocess.download import Fetch, Hub, Row, Source
from preprocess.entry import BadRow, Entry, LeaveOut, Value

PREFIX = "tasksource-"
_CARD = "see the card of its repository on the Hugging Face hub"
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def task_entry(name: str) -> TaskEntry:
    """Return the entry of a task.

    Raises:
        MuppetError: tasksource is not installed, has no such task, or does not read it from the hub's conversion.
    """
    try:
        tasks = importlib.import_module("tasksource.access").list_tasks()
        version = importlib.metadata.version("tasksource")
    except ImportError as error:
        raise MuppetError(f"{name!r} needs the package tasksource ({error}): pip install tasksource") from None
    names = {PREFIX + re.sub("[^A-Za-z0-9_-]+", "_", task.id): task for task in tasks.itertuples()}
    if name not in names:
        raise MuppetError(f"tasksource {version} has no task {name!r}{nearest(name, names)}; see its list_tasks()")
    task = names[name]
    hub, options = Hub(task.dataset_name), dict(task.mapping.load_dataset_kwargs)
    if options.pop("revision", hub.revision) != hub.revision or options.keys() - {"data_dir"}:
        raise MuppetError(
            f"{name} cannot be used: tasksource reads certain files or a certain revision of its repository, of which "
            f"there is no conversion to Parquet; name another dataset, or describe its files in a file for --own"
        )
    source = replace(hub, config=options.get("data_dir") or task.config_name or "*")
    note = f"The task {task.id} of tasksource {version}."
    unknown = {"family": "", "fields": {}, "splits": {}, "metric": ""}
    return TaskEntry(name, source=source, licence=_CARD, citation=_CARD, note=note, task=task.id, **unknown)


@dataclass(frozen=True)
class TaskEntry(Entry):
    """A task of tasksource; its rows tell its family, fields, splits and classes (:meth:`completed`)."""

    task: str = ""

    def sha256(self) -> str:
        # all else follows from the version, which the note has, and the rows
        return hashlib.sha256(f"{self.name}: {self.note}".encode()).hexdigest()

    def completed(self, fetch: Fetch) -> TaskEntry:
        preprocessing = importlib.import_module("tasksource.access").load_preprocessing(id=self.task)
        if hasattr(preprocessing, "view"):  # of its two views, the one with a label instead of a distribution
            preprocessing = preprocessing.view(soft=False)
        kind = type(preprocessing).__name__
        options = {"gold_first": False, "max_options": None} if kind == "MultipleChoice" else {}
        tables, repository = _tables(self.source, fetch), str(self.source).removesuffix(" *")
        try:
            examples = preprocessing(tables, **options)
        except Exception as error:  # of the functions in its definition, on rows that we do not know
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise MuppetError(
                f"{self.name}: the definition of {self.note[4:-1]} does not fit {repository} ({reason}); take the "
                f"version of tasksource that does"
            ) from None
        splits = {ours: theirs for ours, theirs in _SPLITS.items() if theirs in examples}
        if "valid" not in splits:
            raise MuppetError(f"{self.name} cannot be used: tasksource gives it no validation split; name another")
        family, fields, names = _layout(kind, examples["train"])
        if not family:
            raise MuppetError(f"{self.name} cannot be used: its examples have several labels each; name another")
        return replace(
            self,
            family=family,
            source=_Examples(repository, self.task, examples),
            fields=fields,
            splits=splits,
            labels=names,
            metric=FAMILIES[family].metric_names[0],
            parts=_shuffled if family == "commonsense" else None,
        )


def _layout(kind: str, train: Any) -> tuple[str, dict[str, Value], tuple[str, ...]]:
    """The family of a kind of task, its fields, and the classes' names; no family if none has such labels."""
    if kind == "MultipleChoice":
        return "commonsense", {"context": "inputs", "choices": "choices", "answer": "answer"}, ()
    labels = train.features["labels"]
    if kind == "TokenClassification":
        names = tuple(getattr(labels.feature, "names", ()))
        return "tagging", {"words": "tokens", "tags": _Named("labels", names)}, names
    inputs = [Cell(text, required=False) for text in ("sentence1", "sentence2") if text in train.features]
    names, dtype = tuple(getattr(labels, "names", ())), getattr(labels, "dtype", "list")
    if dtype.startswith("float"):
        return "regression", {"inputs": inputs, "label": "labels"}, ()
    if "int" not in dtype:
        return "", {}, ()
    numbers = map(str, sorted(set(train.unique("labels")) - {None}))
    return "classification", {"inputs": inputs, "label": _Named("labels", names)}, names or tuple(numbers)


def _tables(hub: Hub, fetch: Fetch) -> Any:
    """All splits of a configuration, of the only one if none is named, as a ``datasets.DatasetDict``."""
    import datasets

    datasets.disable_progress_bars()
    pattern = f"{hub.config}/*/*.parquet"
    folder = fetch.repository(hub.repo, hub.revision, [pattern])
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.glob(pattern)):
        config, split = file.parent.parent.relative_to(folder).as_posix(), file.parent.name
        found.setdefault(config, {}).setdefault(split, []).append(str(file))
    if not found:
        raise MuppetError(f"{folder} has no files {pattern}; mirror the hub's conversion to Parquet there")
    if len(found) > 1 and "default" not in found:
        raise MuppetError(f"{hub.repo} has several configurations ({', '.join(found)}), and tasksource names none")
    cache = str(fetch.cache / "tasksource")
    try:
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_parquet(files, cache_dir=cache)
                for split, files in found.get("default", next(iter(found.values()))).items()
            }
        )
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise MuppetError(f"{folder}/{pattern} cannot be read ({error}); fetch the files again") from None


@dataclass(frozen=True)
class _Examples(Source):
    """The examples that tasksource made of a repository's rows."""

    repository: str
    task: str
    examples: Any

    def __str__(self) -> str:
        return self.repository

    def is_in(self, raw: Path) -> bool:
        return False  # they are in memory

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(self.examples[split]):
            yield f"{self.task}/{split}:row {number + 1}", row


@dataclass(frozen=True)
class _Named:
    """The name of a column's class, or of each of its classes; a class without a name is its number."""

    column: str
    names: tuple[str, ...]

    def __call__(self, row: Row) -> Any:
        value = row[self.column]
        return [self._name(each) for each in value] if isinstance(value, list) else self._name(value)

    def _name(self, value: Any) -> str:
        if value is None or (self.names and value < 0):
            raise LeaveOut("no gold label")
        return self.names[value] if self.names else str(value)


def _shuffled(row: Row) -> Iterator[Row]:
    """The row with its choices in an order that their texts decide: many tasks have the right one first."""
    columns = sorted((column for column in row if re.fullmatch(r"choice\d+", column)), key=lambda name: int(name[6:]))
    choices = [str(row[column]) for column in columns if row[column] is not None]
    if row["labels"] in (None, -1):
        raise LeaveOut("no gold label")
    if not 0 <= row["labels"] < len(choices):
        raise BadRow(f"its answer is choice {row['labels']} of {len(choices)} (counted from 0)")
    order = list(range(len(choices)))
    random.Random("\n".join(choices)).shuffle(order)
    yield {**row, "choices": [choices[place] for place in order], "answer": order.index(row["labels"])}
