"""Classification metrics from confusion counts ``[C, C]`` (row gold, column predicted), which add up over
batches and workers, unlike the metrics themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def accuracy(confusion: np.ndarray) -> float:
    """Share of examples on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def _f1_by_class(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, ``[C]``."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    # a class without counts has no right ones either, so any divisor gives its 0
    return 2 * np.diagonal(confusion) / np.maximum(both, 1)


def f1(confusion: np.ndarray) -> float:
    """F1 of class 1, the positive class of a two-class dataset (MRPC, QQP)."""
    return float(_f1_by_class(confusion)[1])


def macro_f1(confusion: np.ndarray) -> float:
    """Mean of the classes' F1 (CB); a class that is neither gold nor predicted counts 0."""
    return float(_f1_by_class(confusion).mean())


def matthews(confusion: np.ndarray) -> float:
    """Matthews correlation (CoLA), in its form for any number of classes; 0 where it is undefined."""
    confusion = confusion.astype(np.float64)
    total, right = confusion.sum(), np.trace(confusion)
    gold, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    covariance = right * total - gold @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


CONFUSION_METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
}
