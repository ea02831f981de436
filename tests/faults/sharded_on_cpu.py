"""fairscale's FSDP on a CPU: it asks for CUDA, and so ``muppet`` refuses it there; tests have nothing else."""

from __future__ import annotations

import importlib

import torch

from muppet_fairseq import compat


class _WithoutCuda:
    """PyTorch as fairscale's module sees it: streams and waiting are those of the CPU, which do nothing."""

    cuda = torch.cpu

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def allow(rank: int) -> None:
    """Have fairscale 0.4.13 shard over gloo in this process: the fault that :class:`Run` injects."""
    reduce_scatter_bucketer = importlib.import_module("fairscale.internal.reduce_scatter_bucketer")
    module = importlib.import_module("fairscale.nn.data_parallel.fully_sharded_data_parallel")

    compat.check_parallel = lambda common, distributed: None
    module.torch = _WithoutCuda()
    module._get_default_cuda_device = lambda wrapped: torch.device("cpu")
    torch.Tensor.record_stream = lambda self, stream: None
    torch.Tensor.cuda = lambda self: self
    # gloo reads the shape of a two-dimensional bucket otherwise
    reduce_scatter_bucketer.enable_nccl_base_collectives = False
    gather = module.FullyShardedDataParallel._gather_optim_state

    def gather_one_by_one(self, states: dict[int, dict]) -> tuple[dict, dict]:
        # all kinds of state go through one buffer, of which ``.cpu()`` is a copy only on a GPU
        gathered: tuple[dict, dict] = ({}, {})
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            parts = gather(self, {number: {kind: s[kind]} for number, s in states.items() if kind in s})
            for whole, part in zip(gathered, parts, strict=True):
                for number, state in part.items():
                    whole.setdefault(number, {}).update(state)
        return gathered

    module.FullyShardedDataParallel._gather_optim_state = gather_one_by_one
