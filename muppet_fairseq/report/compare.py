"""Paired comparisons of every start with the base, over seeds and over test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from muppet_fairseq.report.read import Start
from muppet_fairseq.report.scores import MEAN, Cell, Scores

LEVEL = 0.95


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test: the mean difference in points, its 95% interval, p, and p after Holm's correction."""

    pairs: int
    difference: float
    low: float
    high: float
    p: float
    holm: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """One start with the base on one column: over the seeds that both have finished."""

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


def paired(values: np.ndarray, base: np.ndarray) -> PairedTest | None:
    """Student's paired t-test. None with fewer than two pairs, or where all differences are the same: no spread."""
    differences = values - base
    if len(differences) < 2 or np.ptp(differences) < 1e-9:
        return None
    found = stats.ttest_rel(values, base)
    interval = found.confidence_interval(LEVEL)
    return PairedTest(
        len(differences), float(differences.mean()), float(interval.low), float(interval.high), float(found.pvalue)
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
    """Compare all of a study's starts with the base, its models apart; Holm's correction is over all of them."""
    comparisons = []
    for scores, label in zip(models, labels, strict=True):
        base, *others = scores.study.starts
        for start in others:
            for variant in scores.study.variants:
                for column in scores.columns:
                    cell = scores.cells.get((start.name, variant, column.label))
                    reference = scores.cells.get((base.name, variant, column.label))
                    if cell and reference:
                        comparisons.append(_compare(label, start, variant, column.label, cell, reference))
    return _corrected(comparisons)


def _compare(model: str, start: Start, variant: str | None, column: str, cell: Cell, base: Cell) -> Comparison:
    seeds = tuple(sorted(set(cell.seeds) & set(base.seeds)))
    if not seeds:
        return Comparison(model, start, variant, column, seeds, None, None, None)
    values, references = cell.values(seeds), base.values(seeds)
    examples, why = None, None
    if column != MEAN.label:
        scores = [from_.example_scores[seed] for from_ in (cell, base) for seed in seeds]
        if len({len(by_example) for by_example in scores}) > 1:
            why = "the runs have different numbers of test examples"
        else:
            examples = paired(np.mean(scores[: len(seeds)], axis=0), np.mean(scores[len(seeds) :], axis=0))
    difference = float((values - references).mean())
    return Comparison(model, start, variant, column, seeds, difference, paired(values, references), examples, why)


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    for kind in ("over_seeds", "over_examples"):
        places = [place for place, c in enumerate(comparisons) if getattr(c, kind)]
        corrected = holm([getattr(comparisons[place], kind).p for place in places])
        for place, p in zip(places, corrected, strict=True):
            test = replace(getattr(comparisons[place], kind), holm=p)
            comparisons[place] = replace(comparisons[place], **{kind: test})
    return comparisons
