"""Expand a study into its runs: one training each, in a folder named by all that decides its result.

Runs are shared: two studies that need the same one (the base encoder fine-tuned on a dataset) name the same folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.report.read import BASE
from muppet_fairseq.study.settings import STAGE_KEYS, Nearest, Stage, Start, Study, merged
from muppet_fairseq.suite import Suite, SuiteEntry

#: settings that do not change a run's result
_NO_MATTER = ("seeds", "workers", "suite", "grid", "datasets", "train", "head", "metric", "examples", "own-heads")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        kind: ``pre_finetuning`` or ``fine_tuning``.
        label: what it is, for people.
        slug: what its folder's name begins with.
        model: file of the whole model that it starts from, unless ``after`` has one.
        after: the pre-finetuning that it starts from.
        part: file of what was tuned of ``model``, which it starts from where that was not done by ``after``.
        suite: what it is trained on.
        judged: what it is evaluated on; nothing for a pre-finetuning.
        settings: its stage, all layers merged.
        teachers: trained on one of its datasets each, which it distils.
        probe: the run that its own prompt is to be like: it starts from the most similar one of ``candidates``.
    """

    kind: str
    label: str
    slug: str
    data: Path
    model: Path
    after: Run | None
    suite: Suite
    judged: Suite
    settings: Stage
    seed: int
    part: Path | None = None
    teachers: tuple[Run, ...] = ()
    probe: Run | None = None
    candidates: tuple[Run, ...] = ()

    @cached_property
    def options(self) -> dict[str, str]:
        """Of ``fairseq-train``."""
        return {key: value for key, value in self.settings.items() if key not in STAGE_KEYS}

    @property
    def tunes(self) -> str:
        """Which part of the model is trained: ``--tune``."""
        return self.options.get("tune", "all")

    @property
    def backbone(self) -> Run | Path:
        """The whole model, by which the run's checkpoint is completed where that is but a part."""
        if self.after is None:
            return self.model
        return self.after if self.after.tunes == "all" else self.after.backbone

    @cached_property
    def needs(self) -> tuple[Run, ...]:
        """Runs that have to be finished before."""
        maybe = (self.after, *self.teachers, self.probe, *self.candidates)
        return tuple({run.key: run for run in maybe if run}.values())

    @cached_property
    def key(self) -> str:
        """Eight hexadecimal digits of all that decides the result."""
        settings = {key: value for key, value in self.settings.items() if key not in _NO_MATTER}
        origin = self.after.key if self.after else str(self.model)
        datasets = [self.suite.text(), self.judged.text()]
        decides: list[Any] = [self.kind, str(self.data), origin, datasets, settings, self.seed]
        if self.part:
            decides.append(str(self.part))
        if self.teachers or self.probe:
            decides.append([[run.key for run in self.teachers], [run.key for run in self.needs]])
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]

    @cached_property
    def folder(self) -> Path:
        """In the folder of all runs."""
        return Path(self.kind) / f"{self.slug}-{self.key}"


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning's place in its study."""

    run: Run
    start: str
    variant: str | None
    hyper_parameters: dict[str, float | str]


@dataclass(frozen=True)
class Plan:
    """All runs of a study: ``pre_finetunings`` by start (several where they differ in their seeds).

    Where there are fine-tunings, only those pre-finetunings that one of them starts from.
    """

    study: Study
    pre_finetunings: dict[str, list[Run]]
    fine_tunings: list[FineTuning]

    @property
    def runs(self) -> list[Run]:
        """Each once, those that others wait for first, then seed by seed, so that an early report has all columns."""
        before = [run for runs in self.pre_finetunings.values() for run in runs]
        after = sorted((tuning.run for tuning in self.fine_tunings), key=lambda run: run.seed)
        return with_needed([*before, *after])


def with_needed(runs: Iterable[Run]) -> list[Run]:
    """These runs and those that they need, each once and after what it needs."""
    found: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.key not in found:
            for needed in run.needs:
                add(needed)
            found[run.key] = run

    for run in runs:
        add(run)
    return list(found.values())


def expand(
    study: Study,
    checkpoints: Mapping[str, Path] = MappingProxyType({}),
    *,
    updates: int | None = None,
    seeds: int | None = None,
) -> Plan:
    """Expand a study.

    Args:
        checkpoints: files to start from, by start, instead of pre-finetuning.
        updates: of each pre-finetuning, whatever the study says.
        seeds: of each fine-tuning, likewise.

    Raises:
        MuppetError: a suite or a combination of settings cannot be used.
    """
    for name in checkpoints:
        if name not in study.starts:
            raise MuppetError(f"{study.path} has no start {name!r}{nearest(name, study.starts)}; see its 'starts'")
        if study.starts[name].pre_finetuning is None:
            raise MuppetError(f"{study.path}: {name!r} has no pre-finetuning that a checkpoint could stand for")
    starts = {BASE: study.base, **study.starts}
    before: dict[str, list[Run]] = {}
    for name, start in starts.items():
        here = start.pre_finetuning is not None and name not in checkpoints
        before[name] = list(_pre_finetunings(study, name, start, updates)) if here else []
    tunings: list[FineTuning] = []
    # probes first
    for name, start in sorted(starts.items(), key=lambda item: item[1].nearest is not None):
        found = list(_fine_tunings(study, name, start, before[name], checkpoints.get(name), seeds))
        if start.nearest:
            teachers = _teachers_of(study, start.nearest.teachers_of, updates)
            found = [_from_nearest(study, tuning, start.nearest, tunings, teachers) for tuning in found]
        tunings += found
    order = list(starts)
    tunings.sort(key=lambda tuning: order.index(tuning.start))
    if tunings:
        needed = {run.key for run in with_needed(tuning.run for tuning in tunings)}
        before = {name: [run for run in runs if run.key in needed] for name, runs in before.items()}
    return Plan(study, before, tunings)


def _pre_finetunings(study: Study, name: str, start: Start, updates: int | None) -> Iterator[Run]:
    counted = {"updates": updates} if updates else {}
    settings = merged(study.pre_finetuning, start.pre_finetuning or {}, counted)
    if "suite" not in settings:
        raise MuppetError(f"{study.path}: the pre-finetuning of {name!r} has no 'suite'")
    entries = Suite.load(settings["suite"]).entries
    if settings.get("own-heads"):
        entries = [replace(entry, head=entry.name) for entry in entries]
    changes = settings.pop("teachers", None)
    for seed in range(1, settings.get("seeds", 1) + 1):
        run = Run(
            kind="pre_finetuning",
            label=f"pre-finetuning {name}" + (f", seed {seed}" if "seeds" in settings else ""),
            slug=Path(settings["suite"]).stem,
            data=study.model.data,
            model=study.model.encoder / "model.pt",
            after=None,
            suite=_suite(entries, settings),
            judged=Suite([]),
            settings=settings,
            seed=seed,
        )
        if changes is not None:
            alone = merged(settings, changes, counted)
            teacher = replace(run, settings=alone)
            more = run.label.removeprefix(f"pre-finetuning {name}")
            run = replace(
                run,
                teachers=tuple(
                    replace(teacher, label=f"teacher {e.name}{more}", slug=e.name, suite=_suite([e], alone))
                    for e in entries
                ),
            )
        yield run


def _suite(entries: list[SuiteEntry], settings: Stage) -> Suite:
    if "examples" in settings:
        entries = [replace(entry, examples=entry.examples or settings["examples"]) for entry in entries]
    return Suite(entries)


def _teachers_of(study: Study, name: str, updates: int | None) -> list[tuple[Run, ...]]:
    """The teachers of each of a start's pre-finetunings, also where these are replaced by a checkpoint."""
    start = study.starts[name]
    runs = [] if start.pre_finetuning is None else _pre_finetunings(study, name, start, updates)
    teachers = [run.teachers for run in runs]
    if not all(teachers) or not teachers:
        raise MuppetError(f"{study.path}: {name!r}, which 'teachers_of' names, has no teachers in its pre-finetuning")
    return teachers


def _from_nearest(
    study: Study, tuning: FineTuning, start: Nearest, tunings: list[FineTuning], teachers: list[tuple[Run, ...]]
) -> FineTuning:
    """The fine-tuning, from the teacher whose prompt is the most similar to that of the probe's fine-tuning."""
    run = tuning.run
    alike = (tuning.variant, run.judged.names, run.seed)
    probes = [t.run for t in tunings if t.start == start.probe and (t.variant, t.run.judged.names, t.run.seed) == alike]
    if len(probes) != 1:
        raise MuppetError(
            f"{study.path}: {run.label} is to have one run of {start.probe!r} as its probe, and there are "
            f"{len(probes)}; give {start.probe!r} as many seeds, and no grid"
        )
    candidates = teachers[(run.seed - 1) % len(teachers)]
    if not all(other.tunes == "prompts" for other in (run, *probes, *candidates)):
        raise MuppetError(f"{study.path}: 'nearest' compares prompts; {run.label}, its probe or a teacher has none")
    slug = f"{Path(run.slug).parent}/nearest"
    return replace(tuning, run=replace(run, slug=slug, probe=probes[0], candidates=candidates))


def _fine_tunings(
    study: Study, name: str, start: Start, before: list[Run], checkpoint: Path | None, seeds: int | None
) -> Iterator[FineTuning]:
    earlier = None if start.pre_finetuning is None else merged(study.pre_finetuning, start.pre_finetuning)
    own_heads = earlier is not None and earlier.get("own-heads", False)
    part = "all" if earlier is None else earlier.get("tune", "all")
    datasets = list(dict.fromkeys(dataset for column in study.columns for dataset in column.datasets))
    if not datasets:
        return
    for variant, changes in (study.variants or {None: {}}).items():
        # an encoder has no heads to begin with
        bare = start.pre_finetuning is None and start.nearest is None
        layers = (study.fine_tuning, {"reuse-heads": False} if bare else {}, start.fine_tuning, changes)
        together = any("train" in layer for layer in layers)
        for judged in [datasets] if together else [[dataset] for dataset in datasets]:
            own = layers if together else [_for_dataset(layer, judged[0]) for layer in layers]
            common = merged(*own, {"seeds": seeds} if seeds else {})
            for point, seed in itertools.product(_points(common), range(1, common.get("seeds", 3) + 1)):
                settings = merged(common, point)
                run = _fine_tuning(study, name, variant, judged, settings, seed, own_heads)
                if part not in ("all", run.tunes):
                    raise MuppetError(
                        f"{study.path}: the pre-finetuning of {name!r} has 'tune: {part}', its fine-tuning "
                        f"'tune: {run.tunes}'; give both the same"
                    )
                if before:
                    after = before[(seed - 1) % len(before)]
                    run = replace(run, after=after, slug=f"{run.slug}/{after.key}")
                elif checkpoint:
                    file = {"model": checkpoint} if part == "all" else {"part": checkpoint}
                    run = replace(run, **file, slug=f"{run.slug}/{checkpoint.stem}")
                else:
                    run = replace(run, slug=f"{run.slug}/{BASE}")
                yield FineTuning(run, name, variant, _hyper_parameters(settings))


def _for_dataset(stage: Stage, dataset: str) -> Stage:
    return merged(stage, stage.get("datasets", {}).get(dataset, {}))


def _fine_tuning(
    study: Study, start: str, variant: str | None, judged: list[str], settings: Stage, seed: int, own_heads: bool
) -> Run:
    def entry(name: str, **more: Any) -> SuiteEntry:
        head = settings.get("head", name if own_heads else None)
        return SuiteEntry(name, "", head=head, metric=settings.get("metric"), **more)

    drawn = {"examples": settings["examples"], "partition": seed} if "examples" in settings else {}
    train = settings.get("train", judged)
    what = f"{judged[0]} ({variant})" if variant else judged[0]
    if "train" in settings:
        what = variant or "+".join(train)
    return Run(
        kind="fine_tuning",
        label=f"{what} from {start}, seed {seed}",
        slug="+".join(train)[:60],
        data=study.model.data,
        model=study.model.encoder / "model.pt",
        after=None,
        suite=Suite([entry(name, **drawn) for name in train]),
        judged=Suite([entry(name) for name in judged]),
        settings=settings,
        seed=seed,
    )


def _points(settings: Stage) -> list[Stage]:
    """The points of the grid, as settings; one without any where there is no grid."""
    grid = settings.get("grid", {})
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _hyper_parameters(settings: Stage) -> dict[str, float | str]:
    """What fine-tuning searches over (§4), and whatever else the grid does."""
    names = dict.fromkeys(("lr", "adam-eps", "dropout", *settings.get("grid", {})))
    return {name: _number_or_text(settings[name]) for name in names if name in settings}


def _number_or_text(value: Any) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
