"""The benchmark of several workers: what it compares, and that it runs."""

import json

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scaling import APART, SINGLE, _compare, _Kind
from benchmarks.training import open_task
from muppet_fairseq.data.iterator import sub_batches_per_update
from muppet_fairseq.data.schedule import SubBatchLimits


def test_efficiency_is_of_the_same_part():
    kinds = {SINGLE: _Kind(1), f"2 {APART}": _Kind(1, copies=2)}
    kinds |= {f"2 workers, {backend}": _Kind(2, backend) for backend in ("slow", "fast")}
    # a machine that is twice as slow in the second part
    seconds = {SINGLE: [8.0, 16.0], f"2 {APART}": [10.0, 20.0], "2 workers, slow": [8.0, 16.0]}
    figures, best = _compare(seconds | {"2 workers, fast": [6.25, 12.5]}, kinds)
    assert figures[f"2 {APART}"]["ceiling"] == 0.8
    assert [figures[f"2 workers, {kind}"]["efficiency"] for kind in ("slow", "fast")] == [0.5, 0.64]
    assert [figures[f"2 workers, {kind}"]["of the ceiling"] for kind in ("slow", "fast")] == [0.625, 0.8]
    assert best == {2: 0.64}


def test_a_part_has_the_same_sub_batches_for_any_number_of_workers(data):
    task = open_task(data, "animals,choices", 32)
    part = 8
    one, four = (
        task.plan(task.datasets["train"], SubBatchLimits(128), 1, sub_batches_per_update(None, workers, freq))
        for workers, freq in ((1, 1), (2, 2))
    )
    for number in range(len(one) // part):
        own = [schedule.updates.reshape(-1)[number * part : (number + 1) * part] for schedule in (one, four)]
        assert np.array_equal(*own)


@pytest.mark.slow
def test_workers_run(data, capsys):
    arguments = ["--suite", "animals,choices", "--arch", "muppet_roberta_tiny", "--max-positions", "32"]
    arguments += ["--max-tokens", "128", "--update-freq", "1,2", "--backends", "legacy_ddp", "--rounds", "1"]
    assert main(["scaling", str(data), *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["figures"]) == ["update-freq 1", "update-freq 2"]
    for figures in printed["figures"].values():
        assert list(figures) == [SINGLE, f"2 {APART}", "2 workers, legacy_ddp"]
        assert all(kind["seconds"]["n"] == 2 and kind["seconds"]["median"] > 0 for kind in figures.values())
    assert len(printed["targets"]) == 2


def test_a_run_that_fails_is_one_sentence(data, capsys):
    assert main(["scaling", str(data), "--suite", "none", "--rounds", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"benchmarks: a run has ended too early: suite 'none': there is no dataset 'none' in {data}"
