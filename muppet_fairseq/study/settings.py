"""Study files: what is pre-finetuned, what is fine-tuned from it, and with which settings.

A study (``examples/studies/batching.yaml``) names its starts, variants and columns, and for each of its scales a model
file (``examples/models/minilm.yaml``). Both hold the stages ``pre_finetuning`` and ``fine_tuning``: mappings of options
of ``fairseq-train`` and of the keys at the end of this file. What stands later wins::

    the model's options  <  its stage  <  study  <  scale  <  dataset  <  start  <  variant  <  grid  <  command line

Suites and models are looked for beside the file that names them; ``encoder`` and ``data`` where the command is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.report.read import BASE, FIGURES, Column
from muppet_fairseq.suite import number_or_share
from muppet_fairseq.yaml_file import compose, items, place

#: settings of a stage: keys of STAGE_KEYS, and options of fairseq-train without "--", their values as texts
Stage = dict[str, Any]


@dataclass(frozen=True)
class Nearest:
    """Fine-tunings start from the most similar of several prompts (SPoT).

    Attributes:
        probe: the start whose fine-tuning on the same dataset it is to be similar to.
        teachers_of: the start whose pre-finetuning has the prompts as teachers.
    """

    probe: str
    teachers_of: str


@dataclass(frozen=True)
class Start:
    """What fine-tunings start from, and what they change to use it.

    Attributes:
        x: its place on a figure's axis; None: the number of datasets in its suite.
        pre_finetuning: None: there is none, and they start from the encoder.
    """

    label: str
    x: float | None
    pre_finetuning: Stage | None
    fine_tuning: Stage
    nearest: Nearest | None = None


@dataclass(frozen=True)
class Model:
    """A model file.

    Attributes:
        encoder: folder with ``model.pt``, ``dict.txt`` and the tokenizer's files.
        source: what ``muppet import-hf`` makes it from where it is missing; None: the user has to put it there.
        prepare: further words for ``python -m preprocess prepare``.
        columns: what studies fine-tune on that do not say it themselves.
    """

    path: Path
    name: str
    encoder: Path
    data: Path
    source: str | None
    prepare: tuple[str, ...]
    columns: tuple[Column, ...]
    pre_finetuning: Stage
    fine_tuning: Stage


@dataclass(frozen=True)
class Study:
    """A study file, read for one of its scales; the stages are the model's with the study's and the scale's changes.

    Attributes:
        compared_with: name of the start that the report compares all others with.
    """

    path: Path
    scale: str
    model: Model
    title: str
    about: str
    paper: str
    figure: str
    axis: str
    compared_with: str
    base: Start
    starts: dict[str, Start]
    variants: dict[str, Stage]
    columns: tuple[Column, ...]
    pre_finetuning: Stage
    fine_tuning: Stage

    @property
    def name(self) -> str:
        return self.path.stem


_TEXTS = ("title", "about", "paper", "figure", "axis", "compared_with")
_PARTS = ("base", "starts", "variants", "columns", "pre_finetuning", "fine_tuning")
_MODEL_KEYS = ("like", "name", "encoder", "data", "import", "prepare", "columns", "options")
_MODEL_KEYS += ("pre_finetuning", "fine_tuning")


def read_study(
    path: Path, scale: str | None = None, model: Path | None = None, *, for_files: tuple[Path, ...] = ()
) -> Study:
    """Read a study file for one of its scales (None: its first), over the one that it is ``like``.

    ``model`` is another model file than the scale's; ``for_files`` are those that are ``like`` this one. Raises
    MuppetError with file and line for what is wrong.
    """
    root = compose(path, "the study")
    top = _mapping(root, path, ("like", *_TEXTS, *_PARTS, "scales"))
    scales = _mapping(top["scales"], path) if "scales" in top else {}
    scale = scale or next(iter(scales), None)
    section = _mapping(scales[scale], path, ("model", *_PARTS)) if scale in scales else {}
    if model is None and "model" in section:
        model = Path(_file(section["model"], path))
    like = None
    if "like" in top:
        files = (*for_files, path)
        like = read_study(_like(top["like"], files), scale, model, for_files=files)
        scale = like.scale
    elif scale is None:
        _needed(top, "scales", root, path)
        raise MuppetError(f"{place(path, top['scales'])}: 'scales' has no scale")
    elif scale not in scales:
        raise MuppetError(f"{path} has no scale {scale!r}{nearest(scale, scales)}; it has {', '.join(scales)}")
    elif model is None:
        raise MuppetError(f"{place(path, scales[scale])}: the scale {scale!r} has no 'model'")
    read = read_model(model) if model else like.model
    texts = {key: " ".join(_text(top[key], path).split()) for key in _TEXTS if key in top}
    if texts.get("figure", FIGURES[0]) not in FIGURES:
        wrong = texts["figure"]
        where = place(path, top["figure"])
        raise MuppetError(f"{where}: unknown figure {wrong!r}{nearest(wrong, FIGURES)}; known are {', '.join(FIGURES)}")
    parts: dict[str, Any] = {}
    for key, node in (top | section).items():
        if key == "base":
            _mapping(node, path, ("label", "fine_tuning"))
            parts[key] = replace(_start(BASE, node, path), x=0, pre_finetuning=None)
        elif key == "starts":
            parts[key] = _starts(node, path)
        elif key == "variants":
            parts[key] = _fine_tunings_by_name(node, path)
        elif key == "columns":
            parts[key] = tuple(_columns(node, path))
    for key in ("pre_finetuning", "fine_tuning"):
        under = getattr(like or read, key)
        parts[key] = merged(under, *(read_stage(layer[key], path, key) for layer in (top, section) if key in layer))
    unless_given = {"title": path.stem, "about": "", "paper": "", "figure": FIGURES[0], "axis": "start"}
    unless_given["compared_with"] = BASE
    unless_given |= {"base": Start(BASE, 0, None, {}), "starts": {}, "variants": {}, "columns": read.columns}
    study = Study(
        **(vars(like) if like else unless_given) | texts | parts | {"path": path, "scale": scale, "model": read}
    )
    if study.compared_with not in (known := (BASE, *study.starts)):
        wrong, where = study.compared_with, place(path, top.get("compared_with", root))
        raise MuppetError(f"{where}: there is no start {wrong!r}{nearest(wrong, known)} to compare with")
    return study


def read_model(path: Path, *, for_files: tuple[Path, ...] = ()) -> Model:
    """Read a model file, over the one that it is ``like``; ``for_files`` are those that are ``like`` this one.

    Raises MuppetError with file and line for what is wrong.
    """
    root = compose(path, "the model")
    top = _mapping(root, path, _MODEL_KEYS)
    files = (*for_files, path)
    like = vars(read_model(_like(top["like"], files), for_files=files)) if "like" in top else {}
    own: dict[str, Any] = {"path": path}
    for key in ("name", "encoder", "data", "import"):
        if key in top:
            field = "source" if key == "import" else key
            own[field] = Path(_text(top[key], path)) if key in ("encoder", "data") else _text(top[key], path)
        elif key != "import" and not like:
            _needed(top, key, root, path)
    if "prepare" in top:
        own["prepare"] = tuple(_text(item, path) for item in _items(top["prepare"], path))
    if "columns" in top:
        own["columns"] = tuple(_columns(top["columns"], path))
    options = read_stage(top["options"], path, "options") if "options" in top else {}
    for key in ("pre_finetuning", "fine_tuning"):
        own[key] = merged(like.get(key, {}), options, read_stage(top[key], path, key) if key in top else {})
    return Model(**{"source": None, "prepare": (), "columns": ()} | like | own)


def merged(*stages: Stage) -> Stage:
    """Lay settings over each other, later ones over earlier ones; those of single datasets and of teachers by name."""
    together: Stage = {}
    for stage in stages:
        if "epochs" in stage and "updates" not in stage:
            together.pop("updates", None)  # which win where both are there
        datasets = dict(together.get("datasets", {}))
        for name, values in stage.get("datasets", {}).items():
            datasets[name] = merged(datasets.get(name, {}), values)
        teachers = [layer["teachers"] for layer in (together, stage) if layer.get("teachers")]
        together |= stage | ({"datasets": datasets} if datasets else {})
        if together.get("teachers"):
            together["teachers"] = merged(*teachers)
    return together


def read_stage(node: yaml.Node, path: Path, stage: str) -> Stage:
    """Read a mapping of options and of the keys of a stage (or of ``options``, which both stages share).

    Raises MuppetError with the line of what is wrong.
    """
    return {key: _setting(key, value, path, stage) for key, value in _mapping(node, path).items()}


def _setting(key: str, node: yaml.Node, path: Path, stage: str) -> Any:
    if key in _SET_BY_STUDIES:
        raise MuppetError(f"{place(path, node)}: {key!r} is set by the study; give {_SET_BY_STUDIES[key]}")
    if key in STAGE_KEYS and key not in _KEYS[stage]:
        raise MuppetError(f"{place(path, node)}: {key!r} does not belong to {stage}")
    return STAGE_KEYS.get(key, _text)(node, path)


def _like(node: yaml.Node, files: tuple[Path, ...]) -> Path:
    """The file that the last of ``files`` is like; each of them is like the next one."""
    file = Path(_file(node, files[-1]))
    if file.resolve() in [other.resolve() for other in files]:
        raise MuppetError(f"{place(files[-1], node)}: {file} would be 'like' itself")
    return file


def _starts(node: yaml.Node, path: Path) -> dict[str, Start]:
    nodes = _mapping(node, path)
    starts = {name: _start(name, value, path) for name, value in nodes.items()}
    if BASE in starts:
        raise MuppetError(f"{place(path, node)}: {BASE!r} is the encoder itself; give this start another name")
    for name, start in starts.items():
        if start.nearest is None:
            continue
        others = [other for other in starts if starts[other].nearest is None]
        for named in vars(start.nearest).values():
            if named not in others:
                raise MuppetError(
                    f"{place(path, nodes[name])}: there is no start {named!r}{nearest(named, others)} for 'nearest'; "
                    f"it takes those without 'nearest' ({', '.join(others) or 'none'})"
                )
    return starts


def _start(name: str, node: yaml.Node, path: Path) -> Start:
    values = _mapping(node, path, ("label", "x", "pre_finetuning", "fine_tuning", "nearest"))
    start = Start(
        label=_text(values["label"], path) if "label" in values else name.replace("_", " "),
        x=_number(values["x"], path) if "x" in values else None,
        pre_finetuning=_pre_finetuning(values["pre_finetuning"], path) if "pre_finetuning" in values else {},
        fine_tuning=read_stage(values["fine_tuning"], path, "fine_tuning") if "fine_tuning" in values else {},
        nearest=_nearest(values["nearest"], path) if "nearest" in values else None,
    )
    if start.nearest and start.pre_finetuning is not None:
        raise MuppetError(
            f"{place(path, values['nearest'])}: 'nearest' says what to start from; give 'pre_finetuning: none', too"
        )
    return start


def _nearest(node: yaml.Node, path: Path) -> Nearest:
    keys = ("probe", "teachers_of")
    values = _mapping(node, path, keys)
    return Nearest(**{key: _text(_needed(values, key, node, path), path) for key in keys})


def _stage_or_none(stage: str) -> Callable[[yaml.Node, Path], Stage | None]:
    def read(node: yaml.Node, path: Path) -> Stage | None:
        return None if isinstance(node, yaml.ScalarNode) and node.value == "none" else read_stage(node, path, stage)

    return read


_pre_finetuning = _stage_or_none("pre_finetuning")
_teachers = _stage_or_none("teachers")


def _columns(node: yaml.Node, path: Path) -> Iterator[Column]:
    """``group: [dataset, {label: L, datasets: [...]}, ...]``; no two with the same label."""
    labels = set()
    for group, members in _mapping(node, path).items():
        for member in _items(members, path):
            if isinstance(member, yaml.ScalarNode):
                column = Column(member.value, group, (member.value,))
            else:
                values = _mapping(member, path, ("label", "datasets"))
                datasets = _words(_needed(values, "datasets", member, path), path)
                column = Column(_text(_needed(values, "label", member, path), path), group, datasets)
            if column.label in labels:
                raise MuppetError(f"{place(path, member)}: a second column {column.label!r}; give it another label")
            labels.add(column.label)
            yield column


# -- values ---------------------------------------------------------------------------------------------------


def _mapping(node: yaml.Node | None, path: Path, known: Iterable[str] | None = None) -> dict[str, yaml.Node]:
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise MuppetError(f"{place(path, node) if node else path}: here belongs a mapping ('key: value')")
    return {key: value for key, _, value in items(node, path, known)}


def _needed(values: dict[str, Any], key: str, node: yaml.Node, path: Path) -> Any:
    if key not in values:
        raise MuppetError(f"{place(path, node)}: {key!r} is missing")
    return values[key]


def _items(node: yaml.Node, path: Path) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise MuppetError(f"{place(path, node)}: here belongs a list ('[a, b]')")
    return node.value


def _text(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.value == "":
        raise MuppetError(f"{place(path, node)}: here belongs one value")
    return node.value


def _words(node: yaml.Node, path: Path) -> tuple[str, ...]:
    return tuple(_text(item, path) for item in _some(node, path))


def _some(node: yaml.Node, path: Path) -> list[yaml.Node]:
    if not _items(node, path):
        raise MuppetError(f"{place(path, node)}: this list is empty")
    return node.value


def _checked(pattern: str, wanted: str, convert: Callable[[str], Any]) -> Callable[[yaml.Node, Path], Any]:
    def read(node: yaml.Node, path: Path) -> Any:
        value = _text(node, path)
        if not re.fullmatch(pattern, value):
            raise MuppetError(f"{place(path, node)}: {value!r} is not {wanted}")
        return convert(value)

    return read


_count = _checked(r"[1-9][0-9]*", "a positive whole number", int)
_number = _checked(r"-?[0-9]+(\.[0-9]+)?", "a number", float)
_share = _checked(r"0?\.[0-9]+|0|1(\.0+)?", "a share from 0 to 1", float)
_flag = _checked(r"true|false", "true or false", lambda value: value == "true")
_workers = _checked(r"[1-9][0-9]*|all", "a positive whole number or 'all'", lambda v: v if v == "all" else int(v))


def _examples(node: yaml.Node, path: Path) -> int | Fraction:
    examples = number_or_share(_text(node, path))
    if examples is None:
        raise MuppetError(f"{place(path, node)}: {node.value!r} is no positive whole number, nor a share up to 100%")
    return examples


def _file(node: yaml.Node, path: Path) -> str:
    return os.path.normpath(path.parent / _text(node, path))


def _texts_by_name(node: yaml.Node, path: Path) -> dict[str, str]:
    return {key: _text(value, path) for key, value in _mapping(node, path).items()}


def _grid(node: yaml.Node, path: Path) -> dict[str, tuple[Any, ...]]:
    grid = {}
    for option, values in _mapping(node, path).items():
        if option in STAGE_KEYS and option not in _IN_GRIDS:
            known = f"options of fairseq-train and {', '.join(_IN_GRIDS)}"
            raise MuppetError(f"{place(path, values)}: a grid takes {known}, not {option!r}")
        grid[option] = tuple(_setting(option, value, path, "fine_tuning") for value in _some(values, path))
    return grid


def _fine_tunings_by_name(node: yaml.Node, path: Path) -> dict[str, Stage]:
    return {name: read_stage(values, path, "fine_tuning") for name, values in _mapping(node, path).items()}


#: what the driver says to fairseq-train itself, and what says it in a stage
_SET_BY_STUDIES = {
    "update-freq": "'sub-batches'",
    "max-update": "'updates'",
    "total-num-update": "'updates'",
    "max-epoch": "'epochs'",
    "warmup-updates": "'warmup', a share",
    "seed": "'seeds', how many",
    "backbone": "'tune', and it is the encoder or the pre-finetuned model",
    "save-dir": "--runs to 'muppet study'",
}

#: keys of a stage that a grid may have
_IN_GRIDS = ("epochs", "updates", "warmup", "sub-batches", "examples")

_EITHER: dict[str, Callable[[yaml.Node, Path], Any]] = {
    "sub-batches": _count,  # of an update, whatever the number of workers
    "updates": _count,  # how many; instead of epochs
    "epochs": _count,
    "warmup": _share,  # of the updates
    "examples": _examples,  # of each training set, as many or such a share; fine-tuning draws anew for each seed
    "seeds": _count,  # how many runs that differ in nothing else; fine-tunings take turns at pre-finetunings
}
_PRE_FINETUNING = {
    "suite": _file,
    "own-heads": _flag,  # one for each dataset, also in the families that share one
    "workers": _workers,  # GPUs, or processes on CPUs; all: as many as there are
    "teachers": _teachers,  # what their pre-finetuning, on one dataset of the suite each, changes; none: there are none
}
_FINE_TUNING = {
    "train": _words,  # one run on these datasets is judged on all columns; else one run on each column's dataset
    "head": _checked(r"\w[\w-]*", "a head's name", str),  # of all datasets in "train"
    "metric": _text,  # instead of the dataset's own main one
    "reuse-heads": _flag,  # of the pre-finetuned model
    "grid": _grid,  # option: values
    "split": _text,  # what it is judged on; default: valid
    "generation": _texts_by_name,  # options of 'muppet evaluate'
    "datasets": _fine_tunings_by_name,  # settings for single datasets
}
_KEYS = {
    "options": _EITHER,
    "pre_finetuning": _EITHER | _PRE_FINETUNING,
    "teachers": ("sub-batches", "updates", "epochs", "warmup", "examples", "workers"),
    "fine_tuning": _EITHER | _FINE_TUNING,
}
#: what a stage knows besides fairseq-train's options, and what reads it
STAGE_KEYS = _EITHER | _PRE_FINETUNING | _FINE_TUNING
