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


def _correlation(function: Callable[..., Any], x: ArrayLike, y: ArrayLike) -> float:
    # scipy computes in the type it is given; float32 would lose digits
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    # the undefined cases by name, not by scipy's nan: a model that predicts nan shall not pass for a constant one
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(function(x, y).statistic)
