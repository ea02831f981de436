"""Chunks of BIO tags, counted as the CoNLL shared tasks' script ``conlleval`` does (Tjong Kim Sang & Buchholz 2000).

A tag is ``O``, or ``B-TYPE`` or ``I-TYPE``. A chunk begins at every ``B-``, and at an ``I-`` that follows ``O`` or
another type; it ends where the next one begins or an ``O`` stands. It is right if a predicted one has the same first
word, last word and type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_OUTSIDE, _BEGIN, _INSIDE = range(3)


def tag_parts(tags: Sequence[str]) -> Tensor:
    """Return for each tag whether it is outside a chunk (0), begins one (1) or is inside one (2), and a number of its
    type, int64 ``[tags, 2]``. The empty tag is outside, too."""
    types: dict[str, int] = {}
    parts = []
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        place = _OUTSIDE if prefix in ("O", "") else _BEGIN if prefix == "B" else _INSIDE
        parts.append((place, types.setdefault(kind, len(types))))
    return torch.tensor(parts).reshape(-1, 2)


def chunk_counts(gold: Tensor, predicted: Tensor) -> Tensor:
    """Return the numbers of right, predicted and gold chunks, ``[3]``, of tags as for :func:`chunk_starts`."""
    return chunk_starts(gold, predicted).flatten(1).sum(dim=1)


def chunk_starts(gold: Tensor, predicted: Tensor) -> Tensor:
    """Return whether a right, a predicted and a gold chunk starts at each word, bool ``[3, B, W]``, of tags as
    :func:`tag_parts`, each ``[B, W, 2]``. Nothing here waits for the device."""
    (gold_starts, gold_last), (starts, last) = _bounds(gold), _bounds(predicted)
    right = gold_starts & starts & (gold[..., 1] == predicted[..., 1]) & (gold_last == last)
    return torch.stack([right, starts, gold_starts])


def _bounds(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a chunk starts at each word, and the last word of the chunk that a word is in, each ``[B, W]``."""
    place, kind = parts[..., 0], parts[..., 1]
    inside = place != _OUTSIDE
    follows = F.pad(inside[:, :-1] & (kind[:, :-1] == kind[:, 1:]), (1, 0))
    starts = inside & ((place == _BEGIN) | ~follows)
    goes_on = F.pad((inside & ~starts)[:, 1:], (0, 1))
    width = parts.shape[1]
    ends = torch.where(goes_on, width, torch.arange(width, device=parts.device))
    # the nearest end from here on
    return starts, ends.flip(1).cummin(dim=1).values.flip(1)
