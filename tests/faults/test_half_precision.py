"""Runs in half precision: what fairseq's loss scaler is for, and going on exactly where one was stopped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from muppet_fairseq import compat
from tests.faults.test_bad_loss import SKIP, Poison, warnings
from tests.runs import equal, finished, parameters
from tests.toy_suite import options


def as_on_a_gpu(rank: int) -> None:
    """fairseq's handler of an overflow puts a zero on the GPU, of which there is none; we refuse --fp16 without one."""
    torch.Tensor.cuda = lambda self, *rest: self
    compat.check_parallel = lambda *sections: None


def loss_scales(folder: Path) -> list[float]:
    out = (folder / "worker-0.out").read_text()
    return [float(scale) for scale in re.findall(r'train_inner .*"loss_scale": "([\d.]+)"', out)]


def test_fp16_overflow_is_left_to_the_scaler_and_nan_is_not(data, tmp_path, ledger):
    more = ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", str(2**24))
    more += ("--max-epoch", "1", "--disable-validation", "--update-freq", "4")
    run = finished(options(data, tmp_path / "run", *more), tmp_path / "run", inject=as_on_a_gpu)
    out = (run.folder / "worker-0.out").read_text()
    overflows = out.count("gradient overflow detected")

    def both(rank: int) -> None:
        as_on_a_gpu(rank)
        Poison(np.nan)(rank)

    poisoned = finished(options(data, tmp_path / "skip", *more, *SKIP), tmp_path / "skip", inject=both)
    scales = [loss_scales(one.folder) for one in (run, poisoned)]
    survived = 0 < overflows < 24 and bool(warnings(poisoned))
    ledger.note("fp16: overflow, and nan besides", survived=survived)
    assert survived, (overflows, warnings(poisoned))
    assert not [line for line in warnings(run) if "sub-batch" in line]
    # a loss that is nan does not lower the scale
    assert scales[0][-1] == scales[1][-1]


FP16 = ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "64", "--fp16-scale-window", "4")


@pytest.mark.parametrize(("precision", "workers"), [(("--bf16",), 1), (("--bf16",), 2), (FP16, 1)])
def test_it_goes_on_to_the_same_parameters(data, tmp_path, ledger, tries, precision, workers):
    """Stopped twice: to those of an undisturbed run, whose optimizer changes parameters in full precision."""
    tries(workers == 1, 1)
    more = (*precision, "--disable-validation", "--dropout", "0.1", "--update-freq", str(4 // workers), "--max-update")
    for name, stops in (("whole", ["12"]), ("parts", ["3", "6", "12"])):
        for updates in stops:
            words = options(data, tmp_path / name, *more, updates)
            finished(words, tmp_path / name, workers=workers, inject=as_on_a_gpu if precision == FP16 else None)
    same = equal(*(parameters(tmp_path / name) for name in ("parts", "whole")))
    ledger.note(f"stopped and resumed, {precision[0][2:]}", survived=same)
    assert same
    if precision == FP16:
        scales = [loss_scales(tmp_path / name) for name in ("parts", "whole")]
        assert scales[0] == scales[1]
        assert scales[0][-1] > 64


def test_it_goes_on_in_the_other_half_precision(data, tmp_path):
    """What it has of full precision is taken over, and a scaler that has counted nothing yet begins."""
    for updates, precision in (("2", ("--bf16",)), ("4", FP16), ("6", ("--bf16",))):
        words = options(data, tmp_path, *precision, "--disable-validation", "--max-update", updates)
        finished(words, tmp_path, inject=as_on_a_gpu)
    assert (tmp_path / "worker-0.out").read_text().count("Loaded checkpoint") == 2
    assert all(value.isfinite().all() for value in parameters(tmp_path).values())
