"""Scores of a study: one point of the grid for each start, and a cell for each column of its table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.report.read import Column, FineTuning, Result, Study

#: metrics that papers give together, in the order in which they do
TOGETHER = (("em", "f1"), ("rouge1", "rouge2", "rougeL"))

MEAN = Column("mean", "", ())


@dataclass(frozen=True, eq=False)
class Cell:
    """Scores of one start on one column, in percent, by seed. Only finished runs have any."""

    planned: tuple[int, ...]
    failed: bool
    #: main metric first
    metrics: dict[int, dict[str, float]]
    #: ``[test examples]``; none for a mean over columns
    example_scores: dict[int, np.ndarray] = field(default_factory=dict)
    #: ``[test examples]``, equal for examples that are about the same thing
    example_groups: dict[int, np.ndarray] = field(default_factory=dict)
    #: what a mean over columns is of
    columns: tuple[Cell, ...] = ()

    @property
    def seeds(self) -> list[int]:
        return sorted(self.metrics)

    def values(self, seeds: Sequence[int]) -> np.ndarray:
        """The main metric ``[seeds]``."""
        return np.array([next(iter(self.metrics[seed].values())) for seed in seeds])

    def by_example(self, seeds: Sequence[int]) -> np.ndarray:
        """Scores ``[test examples]``, their means over seeds."""
        return np.mean([self.example_scores[seed] for seed in seeds], axis=0)

    @property
    def absence(self) -> str:
        """Why there is no seed."""
        return "failed" if self.failed else "missing"

    @property
    def mean(self) -> float:
        """Of the main metric; there must be a seed."""
        return float(self.values(self.seeds).mean())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation of the main metric; None where there are not two seeds."""
        return float(self.values(self.seeds).std(ddof=1)) if len(self.metrics) > 1 else None

    @property
    def means(self) -> dict[str, float]:
        """Of every metric that all seeds have, main first; there must be a seed."""
        first, *others = self.metrics.values()
        names = [name for name in first if all(name in other for other in others)]
        return {name: float(np.mean([metrics[name] for metrics in self.metrics.values()])) for name in names}

    @property
    def shown(self) -> list[str]:
        """Names of the metrics that a table shows: the main one, or those that belong together with it."""
        means = self.means
        main = next(iter(means))
        return next((list(names) for names in TOGETHER if main in names and means.keys() >= set(names)), [main])


@dataclass(frozen=True)
class Choice:
    """The point of the grid that stands for a start on the datasets of one fine-tuning."""

    start: str
    variant: str | None
    datasets: tuple[str, ...]
    fine_tunings: list[FineTuning]
    #: points of the grid, and those of them with all seeds finished
    points: int
    complete_points: int

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        return self.fine_tunings[0].hyper_parameters

    @property
    def score(self) -> float | None:
        return _score(self.fine_tunings)


def _score(fine_tunings: list[FineTuning]) -> float | None:
    """Mean main metric over datasets, then over finished seeds; None without any."""
    by_seed = [
        np.mean([tuning.run.results[name].metrics[tuning.run.results[name].main] for name in tuning.datasets])
        for tuning in fine_tunings
        if tuning.run.finished
    ]
    return float(np.mean(by_seed)) if by_seed else None


def choose(study: Study) -> list[Choice]:
    """Choose by most finished seeds, then by the best score; of equals the first listed."""
    grids: dict[tuple, dict[bytes, list[FineTuning]]] = defaultdict(lambda: defaultdict(list))
    for tuning in study.fine_tunings:
        grids[tuning.start, tuning.variant, tuning.datasets][tuning.point].append(tuning)

    def rank(point: list[FineTuning]) -> tuple[int, float]:
        score = _score(point)
        return sum(tuning.run.finished for tuning in point), -np.inf if score is None else score

    return [
        Choice(
            *key,
            fine_tunings=max(grid.values(), key=rank),
            points=len(grid),
            complete_points=sum(all(tuning.run.finished for tuning in point) for point in grid.values()),
        )
        for key, grid in grids.items()
    ]


class Scores:
    """The chosen runs of one study of one model."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.choices = choose(study)
        #: with the mean where there are several
        self.columns = [*study.columns, *([MEAN] if len(study.columns) > 1 else [])]

    @cached_property
    def cells(self) -> dict[tuple[str, str | None, str], Cell]:
        """By start, variant and column's label; a cell that the study does not plan is not there."""
        chosen = {(c.start, c.variant, dataset): c for c in self.choices for dataset in c.datasets}
        cells = {}
        for start in self.study.starts:
            for variant in self.study.variants:
                found = {}
                for column in self.study.columns:
                    choices = [chosen.get((start.name, variant, dataset)) for dataset in column.datasets]
                    if choices and None not in choices:
                        found[column.label] = _cell(column, choices)
                if 1 < len(self.study.columns) == len(found):
                    found[MEAN.label] = _mean(list(found.values()))
                cells |= {(start.name, variant, label): cell for label, cell in found.items()}
        return cells

    @property
    def same_grid(self) -> bool:
        """Whether every start has the same points for each variant and datasets that it is fine-tuned on."""
        points = defaultdict(lambda: defaultdict(set))
        for tuning in self.study.fine_tunings:
            points[tuning.variant, tuning.datasets][tuning.start].add(tuning.point)
        return all(len({frozenset(grid) for grid in by_start.values()}) == 1 for by_start in points.values())


def _cell(column: Column, choices: list[Choice]) -> Cell:
    """``choices`` has one for each dataset of the column."""
    planned, results = [], []
    for dataset, choice in zip(column.datasets, choices, strict=True):
        planned.append({tuning.seed for tuning in choice.fine_tunings})
        results.append({t.seed: t.run.results[dataset] for t in choice.fine_tunings if t.run.finished})
    seeds = sorted(set.intersection(*map(set, results)))
    return Cell(
        planned=tuple(sorted(set.union(*planned))),
        failed=any(tuning.run.state == "failed" for choice in choices for tuning in choice.fine_tunings),
        metrics={seed: _pooled(column, [by_seed[seed] for by_seed in results]) for seed in seeds},
        example_scores={seed: np.concatenate([by_seed[seed].example_scores for by_seed in results]) for seed in seeds},
        example_groups={seed: _groups([by_seed[seed] for by_seed in results]) for seed in seeds},
    )


def _pooled(column: Column, results: list[Result]) -> dict[str, float]:
    """Metrics over several datasets, weighted by their test examples."""
    mains = {result.main for result in results}
    if len(mains) > 1:
        raise MuppetError(
            f"column {column.label!r} pools {', '.join(column.datasets)}, whose metrics differ "
            f"({', '.join(sorted(mains))}); make them several columns of the study"
        )
    names = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    weights = [result.examples for result in results]
    return {name: float(np.average([r.metrics[name] for r in results], weights=weights)) for name in names}


def _groups(results: list[Result]) -> np.ndarray:
    """Groups over several datasets; none has examples of two."""
    numbers = np.cumsum([0, *(result.example_groups.max(initial=0) + 1 for result in results[:-1])])
    return np.concatenate([result.example_groups + first for result, first in zip(results, numbers, strict=True)])


def _mean(cells: list[Cell]) -> Cell:
    """The mean over columns, of the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(cell.seeds) for cell in cells)))
    return Cell(
        planned=tuple(sorted(set.union(*(set(cell.planned) for cell in cells)))),
        failed=any(cell.failed for cell in cells),
        metrics={seed: {MEAN.label: float(np.mean([cell.values([seed])[0] for cell in cells]))} for seed in seeds},
        columns=tuple(cells),
    )
