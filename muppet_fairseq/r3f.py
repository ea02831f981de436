"""The two parts of R3F (Aghajanyan et al. 2020; MUPPET §3.2): noise on embeddings, and a divergence of predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOISE_TYPES = ("uniform", "normal")


class EmbeddingNoise:
    """Adds z ~ U(-eps, eps) or z ~ N(0, eps^2) to token embeddings.

    Args:
        eps: the noise's size, in the embeddings' unit.
        kind: one of :data:`NOISE_TYPES`.

    Attributes:
        survived: after a call, the share of the tokens' embedding entries that the noise changed, a tensor
            ``[]``. In half precision small noise rounds away: next to 0.05, fp16 has steps of 3e-5, bf16 of 2e-4.
    """

    survived: Tensor

    def __init__(self, eps: float, kind: str) -> None:
        self.eps, self.kind = eps, kind

    def __call__(self, embeddings: Tensor, is_token: Tensor) -> Tensor:
        """Return noised ``embeddings`` ``[R, T, D]``; ``is_token`` ``[R, T]`` tells tokens from padding."""
        noise = torch.empty_like(embeddings, dtype=torch.float32)
        noise = noise.uniform_(-self.eps, self.eps) if self.kind == "uniform" else noise.normal_(0, self.eps)
        noised = embeddings + noise.to(embeddings)
        with torch.no_grad():
            changed = (noised != embeddings).float().mean(dim=2)
            self.survived = (changed * is_token).sum() / is_token.sum()
        return noised


def clean_and_noised(
    embed_tokens: nn.Module, src_tokens: Tensor, noise: EmbeddingNoise, pad: int
) -> tuple[Tensor, Tensor]:
    """Stack the rows with their noised selves: tokens ``[2R, T]`` and their embeddings ``[2R, T, D]``.

    One batch, because a data-parallel model may be called only once before the backward pass; the embeddings are
    looked up once.
    """
    embeddings = embed_tokens(src_tokens)
    noised = noise(embeddings, src_tokens != pad)
    return src_tokens.repeat(2, 1), torch.cat([embeddings, noised])


def symmetric_kl(clean: Tensor, noised: Tensor, dim: int) -> Tensor:
    """KL(p || q) + KL(q || p) over ``dim`` of two tensors of logits; float32, without ``dim``.

    Where both are ``-inf`` there is no candidate, and nothing is added.
    """
    clean, noised = clean.float().log_softmax(dim), noised.float().log_softmax(dim)
    # -inf minus -inf is no number
    ratio = (clean - noised).masked_fill(clean.isneginf(), 0.0)
    return ((clean.exp() - noised.exp()) * ratio).sum(dim)
