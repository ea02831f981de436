"""What a study leaves on disk: the runs it expects, and what became of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.prompts.count import ParameterCounts

FORMAT = 1
#: the start that is the encoder, fine-tuned as it is: the first of every study
BASE = "base"
#: in a folder of records (:mod:`muppet_fairseq.report.records`) what run.json says of all runs
RECORDS = "runs.jsonl"
FIGURES = ("bars", "lines", "curves", "heat_map")
#: what run.json calls a state, and what it is for someone who reads the runs afterwards
STATES = {"finished": "finished", "failed": "failed", "running": "unfinished"}
NOT_STARTED = "not started"


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of one run on one dataset, in percent."""

    #: main metric first
    metrics: dict[str, float]
    examples: int
    #: the main metric by test example ``[examples]``
    example_scores: np.ndarray
    #: the number of each test example's group, those about the same thing ``[examples]``
    example_groups: np.ndarray

    @property
    def main(self) -> str:
        return next(iter(self.metrics))


@dataclass(frozen=True, eq=False)
class Run:
    """One training run; what is not known of it is None or empty."""

    path: str
    name: str = ""
    state: str = NOT_STARTED
    reason: str | None = None
    seconds: float | None = None
    updates: int | None = None
    loss: float | None = None
    divergence: float | None = None
    parameters: ParameterCounts | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str | None = None
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from: the base model (the first of a study) or a pre-finetuned one.

    ``runs`` are its pre-finetunings, one for each seed, ``teachers`` those that they distil.
    """

    name: str
    label: str
    x: float
    runs: tuple[Run, ...]
    teachers: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Column:
    """One dataset, or several that are pooled."""

    label: str
    group: str
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class FineTuning:
    """One fine-tuning and the datasets it is evaluated on."""

    start: str
    variant: str | None
    datasets: tuple[str, ...]
    hyper_parameters: dict[str, Any]
    seed: int
    run: Run

    @property
    def point(self) -> bytes:
        """The hyper-parameters as a key."""
        return orjson.dumps(self.hyper_parameters, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True)
class Study:
    """One study of one model.

    Attributes:
        name: the name of its folder.
        compared_with: the name of the start that all others are compared with.
    """

    name: str
    title: str
    about: str
    paper: str
    model: str
    scale: str
    figure: str
    axis: str
    compared_with: str
    command: str
    starts: tuple[Start, ...]
    columns: tuple[Column, ...]
    fine_tunings: tuple[FineTuning, ...]

    @property
    def reference(self) -> Start:
        """What all other starts are compared with."""
        return next(start for start in self.starts if start.name == self.compared_with)

    @property
    def variants(self) -> list[str | None]:
        """In their order of appearance; shares (``10%``) by size."""
        found = list(dict.fromkeys(tuning.variant for tuning in self.fine_tunings))
        if all(variant and re.fullmatch(r"\d+(\.\d+)?%", variant) for variant in found):
            found.sort(key=lambda share: float(share.rstrip("%")))
        return found

    @property
    def runs(self) -> list[Run]:
        """Every run of the study once, pre-finetuning first."""
        runs = [run for start in self.starts for run in (*start.teachers, *start.runs)]
        runs += [tuning.run for tuning in self.fine_tunings]
        return list({run.path: run for run in runs}.values())


def read_studies(folders: Sequence[Path]) -> list[Study]:
    """Read ``FOLDER/studies/*/study.json`` and their runs' ``run.json``, or what ``runs.jsonl`` says of them.

    Raises MuppetError where there is no study, a file is not what it should be, or two folders hold the same
    study of the same model and scale.
    """
    studies: dict[tuple[str, str, str], Study] = {}
    for folder in folders:
        with _sound(folder / RECORDS):
            runs = {path: _of(path, found) for path, found in read_records(folder).items()}
        paths = sorted(folder.glob("studies/*/study.json"))
        if not paths:
            raise MuppetError(f"{folder} has no studies/*/study.json; run 'muppet study' with it first")
        for path in paths:
            study = _study(path, folder, runs)
            if studies.setdefault((study.name, study.model, study.scale), study) is not study:
                raise MuppetError(
                    f"{path} is a second study {study.name!r} of {study.model} ({study.scale}); name one of the folders"
                )
    return list(studies.values())


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """What each ``run.json`` of a folder of records says, by the run's path; nothing of any other folder.

    Raises MuppetError.
    """
    file = folder / RECORDS
    if not file.exists():
        return {}
    with _sound(file):
        lines = [_known_format(orjson.loads(line), file) for line in file.read_bytes().splitlines()]
        return {line.pop("path"): line for line in lines}


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Turn what wrong content does to the code below into a sentence."""
    try:
        yield
    except OSError as error:
        raise MuppetError(f"{path} cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise MuppetError(
            f"{path} is not what 'muppet study' writes ({problem}); delete it and run the study again"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    return _known_format(orjson.loads(path.read_bytes()), path)  # refuses NaN and Infinity


def _known_format(found: dict[str, Any], path: Path) -> dict[str, Any]:
    if found["format"] != FORMAT:
        raise MuppetError(f"{path} has format {found['format']}, not {FORMAT}; use the muppet_fairseq that wrote it")
    return found


def _study(path: Path, folder: Path, runs: dict[str, Run]) -> Study:
    """Read one study; ``runs`` are those read so far, by path."""

    def run_at(where: str) -> Run:
        if where not in runs:
            runs[where] = _run(folder, where)
        return runs[where]

    with _sound(path):
        found = _json(path)
        study = Study(
            name=path.parent.name,
            **{key: _text(found[key]) for key in ("title", "about", "paper", "model", "scale", "axis", "command")},
            figure=_one_of(FIGURES, found["figure"]),
            # earlier versions compared with the base only
            compared_with=_text(found.get("compared_with", BASE)),
            starts=tuple(
                Start(
                    name=entry["name"],
                    label=str(entry["label"]),
                    x=float(place if entry["x"] is None else entry["x"]),
                    runs=tuple(map(run_at, _pre_finetunings(entry))),
                    # earlier versions knew no teachers
                    teachers=tuple(map(run_at, entry.get("teachers", ()))),
                )
                for place, entry in enumerate(found["starts"])
            ),
            columns=tuple(
                Column(str(entry["label"]), _text(entry["group"]), tuple(map(str, entry["datasets"])))
                for entry in found["columns"]
            ),
            fine_tunings=tuple(
                FineTuning(
                    start=entry["start"],
                    variant=_known(str, entry["variant"]),
                    datasets=tuple(map(str, entry["datasets"])),
                    hyper_parameters=dict(entry["hyper_parameters"]),
                    seed=int(entry["seed"]),
                    run=run_at(entry["run"]),
                )
                for entry in found["fine_tunings"]
            ),
        )
        _check(study)
    for tuning in study.fine_tunings:
        absent = [dataset for dataset in tuning.datasets if dataset not in tuning.run.results]
        if tuning.run.finished and absent:
            place = folder / tuning.run.path / "run.json"
            raise MuppetError(f"{place} has no result of {absent[0]}; delete that folder and run the study again")
    return study


def _pre_finetunings(entry: dict[str, Any]) -> list[str]:
    """Paths of a start's pre-finetunings; earlier versions knew one."""
    if "runs" in entry:
        return list(entry["runs"])
    return [entry["run"]] if entry["run"] else []


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _known(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def _one_of(words: Sequence[str], word: str) -> str:
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word


def _check(study: Study) -> None:
    """Raise ValueError for what would make a score ambiguous."""
    if not (study.starts and study.columns and study.fine_tunings):
        raise ValueError("starts, columns or fine_tunings are empty")
    labels = [column.label for column in study.columns]
    keys = [(t.start, t.variant, t.datasets, t.point, t.seed) for t in study.fine_tunings]
    places = Counter(
        (start, variant, dataset)
        for start, variant, datasets in {(t.start, t.variant, t.datasets) for t in study.fine_tunings}
        for dataset in datasets
    )
    for what, found in (
        ("column", labels),
        ("start", [start.name for start in study.starts]),
        ("fine-tuning", keys),
        ("evaluation", list(places.elements())),
    ):
        twice = [entry for entry, times in Counter(found).items() if times > 1]
        if twice:
            raise ValueError(f"the {what} {twice[0]} is there twice")
    names = [start.name for start in study.starts]
    for name in (study.compared_with, *(tuning.start for tuning in study.fine_tunings)):
        _one_of(names, name)


def _run(folder: Path, where: str) -> Run:
    path = folder / where / "run.json"
    if not path.exists():
        return Run(where)
    with _sound(path):
        return _of(where, _json(path))


def _of(where: str, found: dict[str, Any]) -> Run:
    state = STATES[_one_of(list(STATES), found["state"])]
    training = found["training"] if state == "finished" else {}
    return Run(
        path=where,
        name=_text(found.get("name")),
        state=state,
        reason=_known(str, found.get("reason")),
        seconds=_known(float, found.get("seconds")),
        updates=_known(int, training.get("updates")),
        loss=_known(float, training.get("loss")),
        divergence=_known(float, training.get("divergence")),
        parameters=_known(_counts, training.get("parameters")),
        versions={name: str(number) for name, number in found["versions"].items()},
        hardware=_known(str, found["hardware"]),
        results={name: _result(entry) for name, entry in (found.get("results") or {}).items()},
    )


def _counts(entry: dict[str, Any]) -> ParameterCounts:
    return ParameterCounts(**{name: int(entry[name]) for name in ("prompts", "heads", "others", "frozen")})


def _result(entry: dict[str, Any]) -> Result:
    metrics = {name: 100 * float(value) for name, value in entry["metrics"].items()}
    examples, scores = int(entry["examples"]), 100 * np.asarray(entry["example_scores"], dtype=float)
    if not metrics or examples < 1 or scores.ndim != 1:
        raise ValueError("a result without metrics, test examples or their scores")
    groups = np.asarray(entry.get("example_groups", range(len(scores))), dtype=int)
    if groups.shape != scores.shape:
        raise ValueError("a result whose test examples do not have a group each")
    return Result(metrics, examples, scores, groups)
