"""Prediction heads. ``level`` says what a head reads: one vector a row, or one for each token."""

from __future__ import annotations

from torch import Tensor, nn


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


class SpanHead(nn.Module):
    """Start and end scores of every position. Input ``[R, T, D]``, output ``[R, T, 2]``."""

    level = "token"

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(dim, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.out_proj(self.dropout(features))
