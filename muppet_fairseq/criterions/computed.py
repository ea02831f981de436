"""What was computed of a sub-batch, for the case that it is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: what to do about a loss that is not finite
CURE = "look at the data, lower --lr, or go on without such sub-batches by --on-bad-loss skip"

#: so many examples are named
_MOST = 8


@dataclass(frozen=True)
class Computed:
    """A sub-batch's losses; looking at them waits for the device.

    Attributes:
        dataset: its name.
        examples: their places in the data-bin's split, int64 ``[B]``.
        losses: float32 ``[B]``.
    """

    dataset: str
    examples: Tensor
    losses: Tensor

    def is_bad(self) -> bool:
        """Whether a loss is not finite."""
        return not bool(torch.isfinite(self.losses).all())

    def complaint(self) -> str:
        """Name the examples whose loss is not finite; where all are, the gradient is what is not."""
        bad = ~torch.isfinite(self.losses)
        named = (self.examples[bad] if bad.any() else self.examples).tolist()
        numbers = ", ".join(map(str, named[:_MOST])) + (f" and {len(named) - _MOST} more" if named[_MOST:] else "")
        values = " or ".join(sorted({str(value) for value in self.losses[bad].tolist()}))
        what = f"the loss is {values}" if values else "the gradient is not finite"
        return f"{self.dataset}: {what} for the example{'s' if named[1:] else ''} {numbers} (counted from 0)"
