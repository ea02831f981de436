"""Adam in one kernel is fairseq's Adam up to rounding, and goes on from its checkpoints."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.optim.adam import Adam
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from muppet_fairseq.optimizer import FusedAdam, fused_adam
from tests.runs import equal, parameters
from tests.toy_suite import options, trained

#: the larger one is more than the kernel takes at once, on one thread or several
SHAPES = [(3, 5), (1,), (0,), (70, 131), (16,)]
STEPS = 100


def model_parameters(dtype: torch.dtype, seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    # another layout of memory than that of its gradients
    return [nn.Parameter(tensor) for tensor in [*tensors, torch.randn(6, 4, generator=generator).to(dtype).T]]


def gradients(dtype: torch.dtype, seed: int, scale: float) -> Iterator[list[Tensor | None]]:
    """Of each step; now and then a parameter has none."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        tensors = [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in [*SHAPES, (4, 6)]]
        there = torch.rand(len(tensors), generator=generator) < 0.8
        yield [tensor if kept else None for tensor, kept in zip(tensors, there, strict=True)]


def go(optimizer: Any, given: Iterator[list[Tensor | None]], steps: int) -> None:
    """Steps of an optimizer of one group."""
    for _ in range(steps):
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], next(given), strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()


def copy_parameters(ours: Any, stock: Any) -> None:
    with torch.no_grad():
        for mine, other in zip(ours.param_groups[0]["params"], stock.param_groups[0]["params"], strict=True):
            mine.copy_(other)


def assert_alike(ours: Any, stock: Any, lr: float) -> None:
    """Float32 has 24 bits, 6e-8: a parameter may differ by 1e-6 of itself and a thousandth of a step."""
    for mine, other in zip(ours.param_groups[0]["params"], stock.param_groups[0]["params"], strict=True):
        precision = 1e-6 if mine.dtype == torch.float32 else torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine, other, rtol=precision, atol=lr * 1e-3)
        state, reference = ours.state[mine], stock.state[other]
        assert list(state) == list(reference)
        assert state.get("step") == reference.get("step")
        if not reference or not other.numel():  # no gradient so far, or nothing to have one
            continue
        # means have as many bits as their largest summands, however small what is left where these cancel
        squares = reference["exp_avg_sq"].amax().item()
        for name, summands in (("exp_avg", squares**0.5), ("exp_avg_sq", squares)):
            torch.testing.assert_close(state[name], reference[name], rtol=1e-6, atol=1e-6 * summands)


@settings(max_examples=6)
@given(
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from([1e-5, 1e-3]),
    st.sampled_from([(0.9, 0.98), (0.9, 0.999), (0.0, 0.5)]),
    st.sampled_from([1e-8, 1e-6, 1e-3]),
    st.sampled_from([1e-3, 1.0]),
)
def test_equal_to_fairseqs(seed, dtype, weight_decay, lr, betas, eps, scale):
    values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    optimizers = [kind(model_parameters(dtype, seed), **values) for kind in (FusedAdam, Adam)]
    given = [gradients(dtype, seed, scale) for _ in optimizers]
    for _ in range(STEPS):
        for optimizer, own in zip(optimizers, given, strict=True):
            go(optimizer, own, 1)
        if dtype != torch.float32:
            # a step may be rounded to the number beside; over many of them that adds up
            assert_alike(*optimizers, lr)
            copy_parameters(*optimizers)
    assert_alike(*optimizers, lr)


def test_float64_tells_that_the_formula_is_the_same():
    values = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}
    optimizers = [kind(model_parameters(torch.float64, 1), **values) for kind in (FusedAdam, Adam)]
    for optimizer in optimizers:
        go(optimizer, gradients(torch.float64, 1, 1.0), STEPS)
    for mine, other in zip(*(optimizer.param_groups[0]["params"] for optimizer in optimizers), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_weight_decay_is_fairseqs_bit_for_bit():
    """1 - lr * weight_decay, by which the kernel would multiply, is rounded to 1 - 1.2e-7 here."""
    values = {"lr": 1e-5, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
    ours, stock = (nn.Parameter(torch.linspace(1, 2, 1001)) for _ in range(2))
    for parameter, kind in ((ours, FusedAdam), (stock, Adam)):
        optimizer = kind([parameter], **values)
        for _ in range(100):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("order", [(FusedAdam, Adam), (Adam, FusedAdam)])
def test_either_goes_on_from_the_others_state(order):
    values = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
    undisturbed, given = Adam(model_parameters(torch.float32, 3), **values), gradients(torch.float32, 3, 1.0)
    go(undisturbed, given, 20)
    first, given = order[0](model_parameters(torch.float32, 3), **values), gradients(torch.float32, 3, 1.0)
    go(first, given, 10)
    second = order[1]([nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]], **values)
    second.load_state_dict(through_a_file(first.state_dict()))
    go(second, given, 10)
    assert_alike(second, undisturbed, values["lr"])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [FP16Optimizer, MemoryEfficientFP16Optimizer])
def test_half_precision_goes_on_bit_for_bit(kind):
    def build(values: list[Tensor]) -> Any:
        with fused_adam():
            return kind.build_optimizer(CONFIG, [nn.Parameter(value.clone()) for value in values])

    start = [parameter.detach() for parameter in model_parameters(torch.bfloat16, 5)]
    stock = kind.build_optimizer(CONFIG, [nn.Parameter(value.clone()) for value in start])
    undisturbed, first = build(start), build(start)
    assert type(undisturbed.optimizer) is FusedAdam
    assert type(stock.optimizer) is Adam
    for optimizer in (stock, undisturbed):
        train(optimizer, gradients(torch.bfloat16, 5, 1.0), 20)
    assert_alike(undisturbed.optimizer, stock.optimizer, 1e-3)
    given = gradients(torch.bfloat16, 5, 1.0)
    train(first, given, 10)
    second = build([parameter.detach() for parameter in half_of(first)])
    second.load_state_dict(through_a_file(first.state_dict()))
    if kind is FP16Optimizer:  # what our trainer adds to a checkpoint
        for parameter, value in zip(second.fp32_params, first.fp32_params, strict=True):
            parameter.data.copy_(value)
    train(second, given, 10)
    assert all(map(torch.equal, half_of(second), half_of(undisturbed)))


CONFIG = OmegaConf.create(
    {
        "common": {"bf16": True, "fp16_scale_window": 1, "tpu": False},
        "optimizer": {"_name": "adam", "lr": [1e-3], "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "weight_decay": 0.1},
    }
)


def half_of(optimizer: Any) -> list[nn.Parameter]:
    return optimizer.fp16_params if isinstance(optimizer, FP16Optimizer) else optimizer.params


def train(optimizer: Any, given: Iterator[list[Tensor | None]], steps: int) -> None:
    """As fairseq's trainer does."""
    for _ in range(steps):
        optimizer.zero_grad()
        for parameter, gradient in zip(half_of(optimizer), next(given), strict=True):
            parameter.grad = gradient
        optimizer._needs_sync = True  # what backward() sets
        optimizer.multiply_grads(0.5)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()


def test_training_uses_it(data: Path, tmp_path: Path):
    # so large an eps that gradients which are zero but for rounding count for nothing
    words = ("--adam-eps", "1e-3", "--disable-validation")
    runs = {"ours": words, "old": (*words, "--use-old-adam")}
    for name, more in runs.items():
        trained(options(data, tmp_path / name, "--max-update", "3", *more))
    ours, old = (parameters(tmp_path / name) for name in runs)
    # other rounding
    assert not equal(ours, old)
    assert ours.keys() == old.keys()
    for name, value in old.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)
    # it goes on from the state of fairseq's own
    trained(options(data, tmp_path / "old", "--max-update", "4", *words))
    assert (parameters(tmp_path / "old")["0.step"] == 4).all()
