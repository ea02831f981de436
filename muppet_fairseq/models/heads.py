"""Prediction heads. ``level`` says what a head reads: one vector a row, or one for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SentenceHead(nn.Module):
    """RoBERTa's classification head on the sentence's vector: dropout, dense, tanh, dropout, projection.

    With one output it is the ranking head of multiple choice. Input ``[R, D]``, output ``[R, num_outputs]``.
    """

    level = "sentence"

    def __init__(self, dim: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.dense(self.dropout(features)).tanh()
        return self.out_proj(self.dropout(hidden))


class TokenHead(nn.Module):
    """Dropout and a projection at every position. Input ``[R, T, D]``, output ``[R, T, num_outputs]``."""

    level = "token"

    def __init__(self, dim: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(dim, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.out_proj(self.dropout(features))


class SpanHead(TokenHead):
    """Start and end scores of every position: two outputs."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(dim, 2, dropout)


class SpectralNorm(nn.Module):
    """Divides a matrix ``[n, D]`` of few rows by its largest singular value.

    That value is the root of the largest eigenvalue of the Gram matrix ``[n, n]``. Its 4,096th power, by repeated
    squaring, is the projector onto the top eigenspace for all that float32 can tell: without state, so that every
    worker and every later load sees the same weights, and without waiting for the device.
    """

    SQUARINGS = 12

    def forward(self, weight: Tensor) -> Tensor:
        # --amp would multiply in half precision again
        with torch.autocast(weight.device.type, enabled=False):
            gram = weight.float() @ weight.float().T
            with torch.no_grad():
                projector = gram / gram.trace()
                for _ in range(self.SQUARINGS):
                    projector = projector @ projector
                    projector = projector / projector.trace()
            # symmetric matrices: the sum of products is the trace of gram @ projector
            return weight / (gram * projector).sum().sqrt().to(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What assigning to the normalised weight stores: the weight as it is."""
        return weight


#: what PyTorch calls a weight's stored and normalised selves
PLAIN, NORMALIZED = "out_proj.weight", "out_proj.parametrizations.weight.original"


def normalize_spectrally(head: nn.Module) -> None:
    """R4F: give the head's projection a largest singular value of 1, as fairseq's own R4F does."""
    parametrize.register_parametrization(head.out_proj, "weight", SpectralNorm())
