"""The two parts of R3F (Aghajanyan et al. 2020; MUPPET §3.2): noise on embeddings, and a divergence of predictions."""

from __future__ import annotations

from typing import Any

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
    clean, noised = clean.movedim(dim, -1), noised.movedim(dim, -1)
    width = clean.shape[-1]
    return _SymmetricKL.apply(clean.reshape(-1, width), noised.reshape(-1, width)).view(clean.shape[:-1])


class _SymmetricKL(torch.autograd.Function):
    """The divergence of each row of two tensors ``[R, n]``, and its gradients.

    Over a vocabulary each intermediate result would be as large as the logits. So rows are taken in chunks that stay
    in the processor's cache, and the gradients, which have a closed form, are made along with the value:
    with r = log p - log q, the clean logits' is p * (r - sum(p * r)) + p - q.
    """

    #: elements of a chunk
    CHUNK = 1 << 20

    @staticmethod
    def forward(ctx: Any, clean: Tensor, noised: Tensor) -> Tensor:
        values = torch.empty(len(clean), device=clean.device)
        gradients = torch.empty_like(clean), torch.empty_like(noised)
        rows = max(1, _SymmetricKL.CHUNK // clean.shape[1])
        for start in range(0, len(clean), rows):
            chunk = slice(start, start + rows)
            a, b = clean[chunk].float(), noised[chunk].float()
            p, q = a.softmax(dim=1), b.softmax(dim=1)
            # -inf minus -inf is no number
            ratio = (a - b).sub_(_log_sum(a, p) - _log_sum(b, q)).masked_fill_(a.isneginf(), 0.0)
            difference = p - q
            values[chunk] = (difference * ratio).sum(dim=1)
            mean_p, mean_q = ((shares * ratio).sum(dim=1, keepdim=True) for shares in (p, q))
            gradients[1][chunk] = (mean_q - ratio).mul_(q).sub_(difference)
            gradients[0][chunk] = ratio.sub_(mean_p).mul_(p).add_(difference)
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        clean, noised = ctx.saved_tensors
        # in place: they are as large as the logits (a second backward pass would find them changed and say so)
        return clean.mul_(gradient[:, None]), noised.mul_(gradient[:, None])


def _log_sum(logits: Tensor, shares: Tensor) -> Tensor:
    """``logsumexp`` of each row ``[R, 1]``, from its softmax: the exponentials are not computed again."""
    return logits.amax(dim=1, keepdim=True) - shares.amax(dim=1, keepdim=True).log()
