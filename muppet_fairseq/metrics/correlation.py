"""Correlation of predicted with gold numbers (STS-B) by ``scipy``; 0 where it is undefined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of ``x [n]`` and ``y [n]``; 0 for fewer than 2 pairs and where either is constant."""
    from scipy.stats import pearsonr  # takes a second to import, which training does not need

    return _correlation(pearsonr, x, y)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation of ``x [n]`` and ``y [n]``: Pearson's of the ranks, ties sharing their mean rank.

    0 for fewer than 2 pairs and where either is constant.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, x, y)


def pearson_without_each(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """:func:`pearson` without pair ``i``, for every ``i``, float64 ``[n]``; from sums over all pairs, in O(n)."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.zeros(len(x))
    x_offset, y_offset = x - x.mean(), y - y.mean()
    # without a pair the sums lose its own product, and a little more because both means move
    factor = len(x) / (len(x) - 1)
    xx, yy, xy = (products.sum() - factor * products for products in (x_offset**2, y_offset**2, x_offset * y_offset))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.clip(xy / np.sqrt(xx * yy), -1, 1)
    # Where one pair makes nearly all of the spread, what is left has lost digits. Of three pairs or more, one at most
    # is such a pair for x, and one for y.
    for pair in np.flatnonzero((xx <= 0.1 * (x_offset**2).sum()) | (yy <= 0.1 * (y_offset**2).sum())):
        values[pair] = pearson(np.delete(x, pair), np.delete(y, pair))
    return values


def spearman_without_each(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """:func:`spearman` without pair ``i``, for every ``i``, float64 ``[n]``.

    Ranks do not add up, so each is computed anew, in O(n^2 log n) together.
    """
    return np.array([spearman(np.delete(x, pair), np.delete(y, pair)) for pair in range(len(x))])


def _correlation(function: Callable[..., Any], x: ArrayLike, y: ArrayLike) -> float:
    # scipy computes in the type it is given; float32 would lose digits
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    # the undefined cases by name, not by scipy's nan: a model that predicts nan shall not pass for a constant one
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(function(x, y).statistic)
