"""Paired comparisons of every start with one of them (the base, say), over seeds and over test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from muppet_fairseq.report.read import Start
from muppet_fairseq.report.scores import Cell, Scores

LEVEL = 0.95


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test: the mean difference in points, its 95% interval, p, and p after Holm's correction.

    ``pairs`` are those of all columns together, ``groups`` those of their pairs that are independent of each other.
    """

    pairs: int
    groups: int
    difference: float
    low: float
    high: float
    p: float
    holm: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """One start with the reference on one column: over the seeds that both have finished."""

    model: str
    start: Start
    variant: str | None
    column: str
    seeds: tuple[int, ...]
    #: mean over the seeds, in points; None without a common seed
    difference: float | None
    over_seeds: PairedTest | None
    over_examples: PairedTest | None
    #: why there is no test over examples where one was to be expected
    no_examples: str | None = None


@dataclass(frozen=True)
class Differences:
    """Differences of pairs ``[pairs]`` in one column.

    ``groups`` ``[pairs]`` has equal numbers for pairs that are not independent of each other, as two questions about
    one passage; None: all are.
    """

    values: np.ndarray
    groups: np.ndarray | None = None

    @cached_property
    def sums(self) -> np.ndarray:
        """What the pairs of each group differ from the mean of all, together: ``[groups]``."""
        centred = self.values - self.values.mean()
        if self.groups is None:
            return centred
        return np.bincount(np.unique(self.groups, return_inverse=True)[1], weights=centred)

    @property
    def variance(self) -> float:
        """Of the mean, clustered by group (Liang and Zeger 1986; of evaluations, Miller 2024, arXiv:2411.00640).

        Where each pair is its own group, it is the sample variance over the number of pairs.
        """
        number = len(self.sums)
        return float(number / (number - 1) * np.square(self.sums).sum() / len(self.values) ** 2)


def paired(*columns: Differences) -> PairedTest | None:
    """Student's paired t-test of differences, or of the mean of the means of several columns' differences.

    Columns are independent samples, with degrees of freedom as Welch (1947) has them of the numbers of groups. None
    where a column has fewer than two groups, or no column's groups differ: no spread.
    """
    if min(len(column.sums) for column in columns) < 2:
        return None
    variances = np.array([column.variance for column in columns])
    if variances.max() < 1e-18:
        return None
    difference = float(np.mean([column.values.mean() for column in columns]))
    error = float(np.sqrt(variances.sum())) / len(columns)
    freedom = variances.sum() ** 2 / sum(v**2 / (len(c.sums) - 1) for v, c in zip(variances, columns, strict=True))
    margin = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return PairedTest(
        pairs=sum(len(column.values) for column in columns),
        groups=sum(len(column.sums) for column in columns),
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        p=2 * float(stats.t.sf(abs(difference) / error, freedom)),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979).

    The k-th smallest of n is multiplied by n - k + 1; it becomes at least what the smaller ones did, and at most 1.
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1)
    return corrected.tolist()


def compare(models: Sequence[Scores], labels: Sequence[str]) -> list[Comparison]:
    """Compare all of a study's starts with its reference, its models apart; Holm's correction is over all of them."""
    comparisons = []
    for scores, label in zip(models, labels, strict=True):
        reference = scores.study.reference
        for start in scores.study.starts:
            if start is reference:
                continue
            for variant in scores.study.variants:
                for column in scores.columns:
                    cell = scores.cells.get((start.name, variant, column.label))
                    other = scores.cells.get((reference.name, variant, column.label))
                    if cell and other:
                        comparisons.append(_compare(label, start, variant, column.label, cell, other))
    return _corrected(comparisons)


def _compare(model: str, start: Start, variant: str | None, column: str, cell: Cell, other: Cell) -> Comparison:
    seeds = tuple(sorted(set(cell.seeds) & set(other.seeds)))
    if not seeds:
        return Comparison(model, start, variant, column, seeds, None, None, None)
    examples, why = None, None
    pairs = list(zip(cell.columns or (cell,), other.columns or (other,), strict=True))
    if all(len({len(of.example_scores[seed]) for of in pair for seed in seeds}) == 1 for pair in pairs):
        examples = paired(*(_by_example(one, two, seeds) for one, two in pairs))
    else:
        why = "the runs have different numbers of test examples"
    differences = cell.values(seeds) - other.values(seeds)
    return Comparison(
        model, start, variant, column, seeds, float(differences.mean()), paired(Differences(differences)), examples, why
    )


def _by_example(one: Cell, two: Cell, seeds: Sequence[int]) -> Differences:
    # a run that was judged before its dataset's groups were known has each example by itself
    groups = min((of.example_groups[seed] for of in (one, two) for seed in seeds), key=lambda of: len(np.unique(of)))
    return Differences(one.by_example(seeds) - two.by_example(seeds), groups)


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    for kind in ("over_seeds", "over_examples"):
        places = [place for place, c in enumerate(comparisons) if getattr(c, kind)]
        corrected = holm([getattr(comparisons[place], kind).p for place in places])
        for place, p in zip(places, corrected, strict=True):
            test = replace(getattr(comparisons[place], kind), holm=p)
            comparisons[place] = replace(comparisons[place], **{kind: test})
    return comparisons
