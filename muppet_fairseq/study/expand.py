"""Expand a study into its runs: one training each, in a folder named by all that decides its result.

Runs are shared: two studies that need the same one (the base encoder fine-tuned on a dataset) name the same folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.study.settings import BASE, STAGE_KEYS, Stage, Start, Study, merged
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
        model: file of the parameters that it starts from, where ``after`` is None.
        after: the pre-finetuning that it starts from.
        suite: what it is trained on.
        judged: what it is evaluated on; nothing for a pre-finetuning.
        settings: its stage, all layers merged.
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

    @cached_property
    def options(self) -> dict[str, str]:
        """Of ``fairseq-train``."""
        return {key: value for key, value in self.settings.items() if key not in STAGE_KEYS}

    @cached_property
    def key(self) -> str:
        """Eight hexadecimal digits of all that decides the result."""
        settings = {key: value for key, value in self.settings.items() if key not in _NO_MATTER}
        origin = self.after.key if self.after else str(self.model)
        datasets = [self.suite.text(), self.judged.text()]
        decides = [self.kind, str(self.data), origin, datasets, settings, self.seed]
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
    """All runs of a study: ``pre_finetunings`` by start (several where they differ in their seeds)."""

    study: Study
    pre_finetunings: dict[str, list[Run]]
    fine_tunings: list[FineTuning]

    @property
    def runs(self) -> list[Run]:
        """Each once, those that others wait for first, then seed by seed, so that an early report has all columns."""
        before = [run for runs in self.pre_finetunings.values() for run in runs]
        after = sorted((tuning.run for tuning in self.fine_tunings), key=lambda run: run.seed)
        return list({run.key: run for run in (*before, *after)}.values())


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
    base = Start("base", 0, {}, {"reuse-heads": False})
    before: dict[str, list[Run]] = {BASE: []}
    tunings = []
    for name, start in {BASE: base, **study.starts}.items():
        if name != BASE:
            before[name] = [] if name in checkpoints else list(_pre_finetunings(study, name, start, updates))
        tunings += _fine_tunings(study, name, start, before[name], checkpoints.get(name), seeds)
    return Plan(study, before, tunings)


def _pre_finetunings(study: Study, name: str, start: Start, updates: int | None) -> Iterator[Run]:
    settings = merged(study.pre_finetuning, start.pre_finetuning, {"updates": updates} if updates else {})
    if "suite" not in settings:
        raise MuppetError(f"{study.path}: the pre-finetuning of {name!r} has no 'suite'")
    entries = Suite.load(settings["suite"]).entries
    if settings.get("own-heads"):
        entries = [replace(entry, head=entry.name) for entry in entries]
    if "examples" in settings:
        entries = [replace(entry, examples=entry.examples or settings["examples"]) for entry in entries]
    for seed in range(1, settings.get("seeds", 1) + 1):
        yield Run(
            kind="pre_finetuning",
            label=f"pre-finetuning {name}" + (f", seed {seed}" if "seeds" in settings else ""),
            slug=Path(settings["suite"]).stem,
            data=study.model.data,
            model=study.model.encoder / "model.pt",
            after=None,
            suite=Suite(entries),
            judged=Suite([]),
            settings=settings,
            seed=seed,
        )


def _fine_tunings(
    study: Study, name: str, start: Start, before: list[Run], checkpoint: Path | None, seeds: int | None
) -> Iterator[FineTuning]:
    own_heads = name != BASE and merged(study.pre_finetuning, start.pre_finetuning).get("own-heads", False)
    datasets = list(dict.fromkeys(dataset for column in study.columns for dataset in column.datasets))
    if not datasets:
        return
    for variant, changes in (study.variants or {None: {}}).items():
        layers = (study.fine_tuning, start.fine_tuning, changes)
        together = any("train" in layer for layer in layers)
        for judged in [datasets] if together else [[dataset] for dataset in datasets]:
            own = layers if together else [_for_dataset(layer, judged[0]) for layer in layers]
            common = merged(*own, {"seeds": seeds} if seeds else {})
            for point, seed in itertools.product(_points(common), range(1, common.get("seeds", 3) + 1)):
                settings = merged(common, point)
                run = _fine_tuning(study, name, variant, judged, settings, seed, own_heads)
                if before:
                    after = before[(seed - 1) % len(before)]
                    run = replace(run, after=after, slug=f"{run.slug}/{after.key}")
                else:
                    model = checkpoint or run.model
                    run = replace(run, model=model, slug=f"{run.slug}/{model.stem if checkpoint else BASE}")
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
