"""The jackknife (Tukey 1958; Efron & Tibshirani 1993, ch. 11): what each example contributes to a metric."""

from __future__ import annotations

import numpy as np


def pseudo_values(whole: float, without: np.ndarray) -> list[float]:
    """Return each example's pseudo-value ``n * whole - (n - 1) * without[i]``.

    For a mean over examples it is the example's own value; for other metrics it may lie outside their range.

    Args:
        whole: the metric of all ``n`` examples.
        without: ``[n]``: the metric of all examples but one.
    """
    count = len(without)
    return (count * whole - (count - 1) * without).tolist()
