"""The two parts of R3F (Aghajanyan et al. 2020; MUPPET §3.2): noise on embeddings, and divergences of predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NOISE_TYPES = ("uniform", "normal")

#: of two tensors of logits, over a dimension: :func:`symmetric_kl`, or what :func:`kl` is at a temperature
Divergence = Callable[[Tensor, Tensor, int], Tensor]


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
    return _over(dim, clean, noised, True, 1.0)


def kl(teacher: Tensor, student: Tensor, dim: int, temperature: float = 1.0) -> Tensor:
    """KL(p || q) over ``dim`` of the logits of a teacher (p) and a student (q), all divided by ``temperature``.

    Otherwise as :func:`symmetric_kl`. It is not multiplied with the square of the temperature.
    """
    return _over(dim, teacher, student, False, temperature)


def _over(dim: int, first: Tensor, second: Tensor, symmetric: bool, temperature: float) -> Tensor:
    first, second = first.movedim(dim, -1), second.movedim(dim, -1)
    width = first.shape[-1]
    values = _Divergence.apply(first.reshape(-1, width), second.reshape(-1, width), symmetric, temperature)
    return values.view(first.shape[:-1])


class _Divergence(torch.autograd.Function):
    """The divergence of each row of two tensors ``[R, n]``, and its gradients.

    Over a vocabulary each intermediate result would be as large as the logits. So rows are taken in chunks that stay
    in the processor's cache, and the gradients, which have a closed form, are made along with the value: with
    r = log p - log q, those of KL(p || q) are p * (r - sum(p * r)) for the logits of p, and q - p for those of q.
    """

    #: elements of a chunk
    CHUNK = 1 << 20

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, symmetric: bool, temperature: float) -> Tensor:
        values, precision = (
            torch.empty(len(first), device=first.device),
            torch.promote_types(first.dtype, torch.float32),
        )
        of_first, of_second = (
            torch.empty_like(logits) if needed else None
            for logits, needed in zip((first, second), ctx.needs_input_grad[:2], strict=True)
        )
        rows = max(1, _Divergence.CHUNK // first.shape[1])
        for start in range(0, len(first), rows):
            chunk = slice(start, start + rows)
            a, b = first[chunk].to(precision), second[chunk].to(precision)
            if not symmetric:
                # else the rounding of large logits would be the value's own: it is no sum of small differences
                a, b = ((logits - logits.amax(dim=1, keepdim=True)) / temperature for logits in (a, b))
            p, q = a.softmax(dim=1), b.softmax(dim=1)
            # -inf minus -inf is no number
            ratio = (a - b).sub_(_log_sum(a, p) - _log_sum(b, q)).masked_fill_(a.isneginf(), 0.0)
            difference = p - q
            mean_p = (p * ratio).sum(dim=1, keepdim=True)
            values[chunk] = (difference * ratio).sum(dim=1) if symmetric else mean_p.squeeze(1)
            if of_second is not None:
                if symmetric:
                    mean_q = (q * ratio).sum(dim=1, keepdim=True)
                    of_second[chunk] = (mean_q - ratio).mul_(q).sub_(difference)
                else:
                    of_second[chunk] = -difference
            if of_first is not None:
                if not symmetric:
                    # where a teacher is sure, the likeliest candidate's ratio is nearly the mean: with both in the
                    # hundreds their difference would be rounding, so ratios are counted from that candidate's
                    ratio.sub_(ratio.gather(1, p.argmax(dim=1, keepdim=True)))
                    mean_p = (p * ratio).sum(dim=1, keepdim=True)
                ratio.sub_(mean_p).mul_(p)
                of_first[chunk] = ratio.add_(difference) if symmetric else ratio
        ctx.save_for_backward(of_first, of_second)
        ctx.temperature = temperature
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient[:, None] / ctx.temperature
        # in place: they are as large as the logits (a second backward pass would find them changed and say so)
        first, second = (None if saved is None else saved.mul_(scale) for saved in ctx.saved_tensors)
        return first, second, None, None


def _log_sum(logits: Tensor, shares: Tensor) -> Tensor:
    """``logsumexp`` of each row ``[R, 1]``, from its softmax: the exponentials are not computed again."""
    return logits.amax(dim=1, keepdim=True) - shares.amax(dim=1, keepdim=True).log()
