"""``muppet plan``: its figures are those of the sub-batches that training would see."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muppet_fairseq import cli
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.suite import Suite
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.toy_suite import NAMES, ROOT, open_task

ALL = ",".join(NAMES)
KEYS = {"examples", "sub_batches", "updates", "distinct_datasets_mean", "distinct_datasets_min"}
KEYS |= {"worker_cost_mean_over_max", "share", "planning_seconds"}


def arguments(data: Path, suite: str | Path = ALL, **options: Any) -> list[str]:
    options = {"suite": suite, "max_positions": 32, "window_overlap": 8} | options
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["plan", str(data), *words]


def brute_force(data: Path, suite: str | Path, workers: int, update_freq: int, max_tokens: int, **options: Any) -> dict:
    """The same figures from the batches that each worker's own iterator yields, put together one by one."""
    task: MuppetTask = open_task(data, suite, update_freq=[update_freq], **options)
    task.load_dataset("train")
    dataset: MultitaskDataset = task.datasets["train"]
    rounds: list[list[list]] = []  # [worker][update][round]: a sub-batch, or nothing
    for worker in range(workers):
        task.dataset_to_epoch_iter.clear()
        iterator = task.get_batch_iterator(dataset, max_tokens, seed=1, num_shards=workers, shard_id=worker)
        mine = [[dataset[i] for i in sub_batch] for sub_batch in iterator.ordered_batches(1, False, True)]
        rounds.append([mine[i : i + update_freq] for i in range(0, len(mine), update_freq)])
    updates = list(zip(*rounds, strict=True))  # [update][worker][round]
    full = [update for update in updates if all(len(own) == update_freq and all(own) for own in update)] or updates

    def cost(sub_batch: list) -> int:
        return dataset.collater(sub_batch)["net_input"]["src_tokens"].numel() if sub_batch else 0

    costs = [[sum(map(cost, own)) for own in update] for update in full]
    sub_batches = [sub_batch for update in updates for own in update for sub_batch in own if sub_batch]
    share = Counter(task.specs[sub_batch[0][0]].name for sub_batch in sub_batches)
    distinct = [len({sub_batch[0][0] for own in update for sub_batch in own if sub_batch}) for update in full]
    return {
        "examples": sum(len(sub_batch) for sub_batch in sub_batches),
        "sub_batches": len(sub_batches),
        "updates": len(updates),
        "distinct_datasets_mean": statistics.mean(distinct),
        "distinct_datasets_min": min(distinct),
        "worker_cost_mean_over_max": statistics.mean(statistics.mean(c) / max(c) for c in costs),
        "share": {spec.name: share[spec.name] / len(sub_batches) for spec in task.specs},
    }


def expect_equal(figures: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(figures) == KEYS
    assert 0 <= figures.pop("planning_seconds") < 60
    assert 0 < figures["worker_cost_mean_over_max"] <= 1
    assert sum(figures["share"].values()) == pytest.approx(1)
    assert figures.pop("share") == pytest.approx(expected.pop("share"))
    assert figures == pytest.approx(expected)


def test_the_command_prints_json(data):
    """The paper's update of 64 sub-batches, which the toy data do not fill."""
    size = {"workers": 64, "update_freq": 1, "max_tokens": 4400}
    options = arguments(data, **size, batching="batch_heterogeneous")
    command = [sys.executable, "-m", "muppet_fairseq.cli", *options, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["updates"] == 1
    assert figures["distinct_datasets_min"] == 4
    expect_equal(figures, brute_force(data, ALL, **size))


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 4, "update_freq": 2, "max_tokens": 128},
        {"workers": 3, "update_freq": 3, "max_tokens": 160, "batching": "batch_homogeneous"},
        {"workers": 16, "update_freq": 4, "max_tokens": 128, "batching": "batch_homogeneous"},  # no update is full
        {"workers": 1, "update_freq": 8, "max_tokens": 128, "batching": "dataset_homogeneous"},
        {"workers": 2, "update_freq": 3, "max_tokens": 128, "batching": "stochastic_tasks"},
        {"workers": 2, "update_freq": 2, "max_tokens": 128, "max_positions": 20, "window_overlap": 2},
    ],
)
def test_figures_are_those_of_the_workers_batches(data, capsys, options):
    cli.main([*arguments(data, **options), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["updates"] >= 4
    expect_equal(figures, brute_force(data, ALL, **options))


def test_sampling_overrides_and_batch_size(data, tmp_path, capsys):
    """The suite's ``examples`` counts, ``--sampling`` shifts the shares, ``--batch-size`` limits examples."""
    suite = tmp_path / "suite.yaml"
    suite.write_text("- {name: animals, examples: 40}\n- pairs\n")
    cli.main([*arguments(data, suite, max_tokens=128), "--json"])
    natural = json.loads(capsys.readouterr().out)
    assert natural["examples"] == 40 + 61
    cli.main([*arguments(data, suite, batch_size=1, sampling="uniform"), "--json"])
    uniform = json.loads(capsys.readouterr().out)
    assert uniform["sub_batches"] == uniform["examples"] == 40 + 61
    assert sorted(uniform["share"].values()) == pytest.approx([50 / 101, 51 / 101])
    cli.main([*arguments(data, suite, batch_size=1, sampling="temperature", sampling_temperature=2), "--json"])
    counts = {"animals": 40**0.5, "pairs": 61**0.5}
    expected = {name: count / sum(counts.values()) for name, count in counts.items()}
    assert json.loads(capsys.readouterr().out)["share"] == pytest.approx(expected, abs=1 / 101)


@pytest.mark.parametrize(
    ("share", "animals", "pairs"),
    [("10%", 15, 6), ("2.5%", 4, 2), ("0.001%", 1, 1), ("99.9%", 150, 61), ("100%", 150, 61), ("100.0%", 150, 61)],
)
def test_a_share_of_the_examples(data, tmp_path, capsys, share, animals, pairs):
    """It is of the dataset's 150 and 61 training examples, rounded, and at least one."""
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"- {{name: animals, examples: {share}}}\n- {{name: pairs, examples: {share}}}\n")
    cli.main([*arguments(data, suite, max_tokens=128), "--json"])
    assert json.loads(capsys.readouterr().out)["examples"] == animals + pairs
    assert [spec.examples for spec in Suite.load(suite).specs(data)] == [animals, pairs]


@pytest.mark.parametrize("name", ["animals", "spans"])
def test_draws_of_one_partition_are_nested(data, tmp_path, name):
    """Of windows, too: an example is drawn with all of its own."""
    suite, drawn = tmp_path / "suite.yaml", []
    for share in ("5%", "20%", "65%", "100%"):
        suite.write_text(f"- {{name: {name}, examples: {share}, partition: 3}}\n")
        task = open_task(data, suite)
        task.load_dataset("train")
        (dataset,), (subset,) = task.datasets["train"].datasets, task.datasets["train"].subsets
        drawn.append(set(dataset.example_of(np.asarray(subset))))
        example_of = dataset.example_of(np.arange(len(dataset)))
        assert np.array_equal(subset, np.flatnonzero(np.isin(example_of, list(drawn[-1]))))
        assert len(drawn[-1]) == task.specs[0].examples
    assert all(smaller < larger for smaller, larger in itertools.pairwise(drawn))


def test_the_table(data, capsys):
    """Every figure by name, then the shares, the largest first."""
    options = {"workers": 4, "update_freq": 2, "max_tokens": 128}
    cli.main([*arguments(data, **options), "--json"])
    figures = json.loads(capsys.readouterr().out)
    cli.main(arguments(data, **options))
    lines = capsys.readouterr().out.splitlines()
    table, shares = lines[: lines.index("")], lines[lines.index("") + 2 :]
    rows = dict(line.rsplit(maxsplit=1) for line in table)
    assert set(rows) == {key.replace("_", " ") for key in KEYS - {"share"}}
    for key in KEYS - {"share", "planning_seconds"}:
        assert float(rows[key.replace("_", " ")].replace(",", "")) == pytest.approx(figures[key], rel=1e-5), key
    shown = {name: float(share.rstrip("%")) / 100 for name, share in (line.split() for line in shares)}
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert shown == pytest.approx(figures["share"], abs=5e-5)


@pytest.mark.parametrize(("wanted", "cure"), [("9", "set --update-freq 5"), ("0", "give at least 1")])
def test_more_sub_batches_than_the_workers_have_room_for(data, wanted, cure):
    with pytest.raises(MuppetError, match=f"--sub-batches is {wanted}, but 2 workers .* room for 8; {cure}"):
        cli.main(arguments(data, workers=2, update_freq=4, max_tokens=256, sub_batches=wanted))
