"""The benchmark of a GPU, tried out on a CPU."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from fairseq.optim.adam import Adam
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.training import build_model
from muppet_fairseq.optimizer import FusedAdam

TINY = ["--sizes", "tiny", "--max-tokens", "128", "--max-positions", "32", "--sub-batches", "1", "--rounds", "1"]


def test_it_runs_on_a_cpu_when_asked(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "VOCABULARY", 200)
    build, made = gpu._bf16_optimizer, []
    monkeypatch.setattr(gpu, "_bf16_optimizer", lambda *given: made.append(build(*given)) or made[-1])
    assert main(["gpu", "--device", "cpu", *TINY, "--no-compile", "--peak-tflops", "1"]) == 0
    # as each trains: ours with its own Adam
    assert [type(optimizer.fp32_optimizer.optimizer) for optimizer in made] == [FusedAdam, Adam]
    printed = json.loads(capsys.readouterr().out)
    for workload in ("fed", "same", "full"):
        figures = printed["figures"]["tiny"][workload]
        assert list(figures) == ["ours", "ours, R3F", "fairseq", "transformers"]
        assert all(figure["mfu"] > 0 for figure in figures.values())
        assert set(figures["ours"]["ratios"]) == {"fairseq", "transformers"}
    assert printed["padding"]["full"] == {"ours": 0.0, "others": 0.0}
    assert [target["what"] for target in printed["targets"]] == [
        "tokens/s, tiny, ours / fairseq",
        "tokens/s, tiny, ours / transformers",
    ]


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    assert capsys.readouterr().err == (
        "benchmarks: this benchmark needs a GPU, and PyTorch finds none; try it out with --device cpu\n"
    )


@pytest.mark.parametrize("leaves_out", [False, True])
def test_operations_are_those_that_pytorch_counts(monkeypatch, leaves_out):
    """But for the head, and what is left of the last layer: both are of one token a row."""
    monkeypatch.setattr(gpu, "VOCABULARY", 200)
    task = gpu._task(128)
    model = build_model(task, "muppet_roberta_tiny").train()
    rows = gpu._rows(np.full(4, 128), np.random.default_rng(1), Namespace(device="cpu"), task)
    with FlopCounterMode(display=False) as counter:
        if leaves_out:
            model(rows.tokens, head="rows", padded=False).sum().backward()
        else:
            model(rows.tokens, padded=False).sum().backward()
    ours = gpu.operations(rows.lengths, model, leaves_out=leaves_out)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)
