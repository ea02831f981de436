"""How many parameters are trained: what methods of parameter-efficient tuning are compared by."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from torch import nn

logger = logging.getLogger(__name__)

#: tag of the log's line that :func:`log_parameters` writes
PARAMETERS = "parameters"


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, each tensor once. Those that are trained:

    Attributes:
        prompts: ``l * d * k`` for ``k`` datasets, decomposed ``l * d + (l + d) * k``, shared ``l * d``.
        heads: that every method trains.
        others: biases, adapters, or all of the backbone.
        frozen: those that are not.
    """

    prompts: int
    heads: int
    others: int
    frozen: int

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} of prompts, {self.heads:,} of heads and {self.others:,} others are trained, "
            f"{self.frozen:,} are frozen"
        )


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model with heads."""
    counts = {"prompts": 0, "heads": 0, "others": 0, "frozen": 0}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        kind = "frozen" if not parameter.requires_grad else part if part in ("prompts", "heads") else "others"
        counts[kind] += parameter.numel()
    return ParameterCounts(**counts)


def log_parameters(model: nn.Module) -> None:
    """Log the counts of a model as a line that a report reads: ``parameters | {"prompts": ...}``."""
    logger.info("%s | %s", PARAMETERS, json.dumps(asdict(count_parameters(model))))
