"""Weights of datasets for the loss-scaling alternatives of §3.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def size_weights(sizes: Sequence[int]) -> np.ndarray:
    """Weights ``[datasets]`` inverse to the number of examples, 1 on the average over all examples.

    With natural sampling every dataset then weighs the same in an epoch.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    return sizes.sum() / (len(sizes) * sizes)


class RunningLosses:
    """Exponential averages of each dataset's training loss, and weights inverse to them.

    The averages are computed from what all workers logged, so they are the same everywhere; they are saved
    with the position in the data, so a resumed run goes on with them.
    """

    def __init__(self, names: Sequence[str], decay: float = 0.99) -> None:
        self.names, self.decay = list(names), decay
        self.losses = np.zeros(len(self.names))  # 0: not seen yet

    def update(self, sub_batches: np.ndarray, losses: np.ndarray) -> None:
        """Take in an update: per dataset its number of sub-batches and the sum of their mean losses."""
        seen = sub_batches > 0
        mean = losses[seen] / sub_batches[seen]
        before = self.losses[seen]
        self.losses[seen] = np.where(before > 0, self.decay * before + (1 - self.decay) * mean, mean)

    def weights(self) -> np.ndarray:
        """``[datasets]``, with mean 1 over the datasets seen; 1 for those not seen yet."""
        weights, seen = np.ones(len(self.losses)), self.losses > 0
        if seen.any():
            inverse = 1 / np.maximum(self.losses[seen], 1e-3)  # a dataset that is learnt must not take all
            weights[seen] = inverse / inverse.mean()
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"running_losses": dict(zip(self.names, self.losses.tolist(), strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state["running_losses"]
        self.losses = np.array([saved.get(name, 0.0) for name in self.names])
