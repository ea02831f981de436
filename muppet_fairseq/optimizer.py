"""fairseq's Adam by PyTorch's fused kernel: one pass over each parameter in place of ten."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.optim import adam
from torch import Tensor

_HALF = {torch.float16, torch.bfloat16}


class FusedAdam(torch.optim.Optimizer):
    """fairseq's ``Adam``, and its state, which either can load from the other's checkpoints.

    fairseq divides by ``sqrt(v) + eps`` and corrects the bias in the step size; the kernel of ``torch.optim.AdamW``
    corrects it in ``v`` before it adds its eps. They agree where that is ``eps / sqrt(1 - beta2 ** step)``, up to
    rounding. The parameters and what is kept of their gradients are computed in float32, whatever they are stored in.
    """

    # what fairseq asks of an optimizer
    supports_memory_efficient_fp16 = True
    supports_flat_params = True

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"amsgrad": False})  # fairseq's checkpoints say so, too

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient. Returns what ``closure`` does."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        # lists of parameters, gradients, means and means of squares, by what the kernel wants to be alike
        lists: dict[Any, tuple[list[Tensor], ...]] = defaultdict(lambda: ([], [], [], []))
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            # one by one, so that there is never a second copy of the whole model
            full = parameter.float() if parameter.dtype in _HALF else parameter
            state = self._advance(parameter, full)
            tensors = (full, _like(full, parameter.grad), state["exp_avg"], state["exp_avg_sq"])
            if full is not parameter:
                _fused(group, float(state["step"]), *([tensor] for tensor in tensors))
                parameter.copy_(full)
                continue
            for values, tensor in zip(lists[float(state["step"]), full.device, full.dtype], tensors, strict=True):
                values.append(tensor)
        for (number, _, _), values in lists.items():
            _fused(group, number, *values)

    def _advance(self, parameter: Tensor, full: Tensor) -> dict[str, Any]:
        """The parameter's state, of the form that the kernel wants, at its next step."""
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(full), exp_avg_sq=torch.zeros_like(full))
        state["step"] += 1
        # a checkpoint is loaded in the parameter's precision
        state.update({name: _like(full, state[name]) for name in ("exp_avg", "exp_avg_sq")})
        return state


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` in a parameter's precision, place and layout: the kernel goes through memory, not through strides."""
    alike = (tensor.dtype, tensor.device, tensor.stride()) == (parameter.dtype, parameter.device, parameter.stride())
    return tensor if alike else torch.empty_like(parameter).copy_(tensor)


def _fused(
    group: dict[str, Any],
    number: float,
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
) -> None:
    """Step ``number`` (from 1) of these parameters."""
    beta1, beta2 = group["betas"]
    if group["weight_decay"] != 0:
        # the kernel would multiply by 1 - lr * weight_decay, of which float32 keeps nothing below 3e-8
        torch._foreach_add_(parameters, parameters, alpha=-group["weight_decay"] * group["lr"])
    torch._fused_adamw_(
        parameters,
        gradients,
        means,
        squares,
        [],
        [torch.full((), number, device=parameters[0].device)] * len(parameters),
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=group["eps"] / math.sqrt(1 - beta2**number),
        amsgrad=False,
        maximize=False,
    )


@contextmanager
def fused_adam() -> Iterator[None]:
    """Within it, ``--optimizer adam`` is the fused one, unless fairseq finds that of apex."""
    stock, adam.Adam = adam.Adam, FusedAdam
    try:
        yield
    finally:
        adam.Adam = stock
