"""The benchmarks beside stock fairseq compare what is the same: data, model, weights, losses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.optim.adam import Adam
from fairseq.trainer import Trainer
from torch import nn

from benchmarks import choices, heads, memory, overhead, tuning
from benchmarks.__main__ import main
from muppet_fairseq.optimizer import FusedAdam
from muppet_fairseq.trainer import MuppetTrainer

SMALL = ("--size", "tiny", "--max-positions", "32", "--max-tokens", "128", "--dropout", "0", "--cpu")


def arguments(benchmark: ModuleType, data: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args([str(data), *SMALL, *more])


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, *SMALL]) == 0
    return json.loads(capsys.readouterr().out)


def of_both(stock: Any, ours: Any, head: str) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of ours, and stock fairseq's."""
    reference = dict(stock.model.named_parameters())
    for name, value in ours.model.named_parameters():
        yield value, reference[name.replace(f"heads.{head}.", "classification_heads.sentence_classification_head.")]


def assert_same_update(stock: Any, ours: Any, head: str) -> None:
    """Gradients up to rounding, and no step longer than the learning rate allows.

    (Where a gradient is zero but for rounding, Adam's step has any direction.)
    """
    for mine, other in of_both(stock, ours, head):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_overhead_is_of_the_same_updates(data):
    args = arguments(overhead, data, "--dataset", "pairs", "--updates", "3")
    stock, ours = overhead.sides(args)
    assert (type(stock.trainer), type(ours.trainer)) == (Trainer, MuppetTrainer)
    assert all(torch.equal(mine, other) for mine, other in of_both(stock, ours, "pairs"))
    for examples in overhead.sub_batches(ours, args):
        theirs, mine = stock.collate(examples), ours.collate(examples)
        assert torch.equal(theirs["net_input"]["src_tokens"], mine["net_input"]["src_tokens"])
        assert torch.equal(theirs["target"].view(-1), mine["target"])
        logs = stock.update([theirs]), ours.update([mine])
        # fairseq logs bits
        assert logs[0]["loss"] * np.log(2) == pytest.approx(logs[1]["loss"], abs=1e-3)
    assert stock.trainer.get_num_updates() == ours.trainer.get_num_updates() == 3
    assert type(stock.trainer.optimizer.optimizer) is Adam
    assert type(ours.trainer.optimizer.optimizer) is FusedAdam
    assert_same_update(stock, ours, "pairs")


def test_choices_are_those_of_ranking(data, tmp_path):
    args = arguments(choices, data, "--updates", "2")
    pair = choices.Pair(args, "choices", tmp_path / "stock")
    (dataset,) = pair.ours.dataset.datasets
    assert sorted(np.concatenate(pair.batches["fairseq"])) == sorted(np.concatenate(pair.batches["muppet"]))
    (stock, theirs), (ours, mine) = pair.collate("same batches"), pair.collate("muppet")
    number = int(stock.trainer.task.args.num_classes)
    for reference, sample in zip(theirs, mine, strict=True):
        assert torch.equal(reference["target"], sample["target"])
        rows = [reference["net_input" + str(i + 1)]["src_tokens"] for i in range(number)]
        for own, other in zip(sample["net_input"]["src_tokens"].split(number), zip(*rows, strict=True), strict=True):
            # stock fairseq puts the choice first
            assert [sorted(row[row != 1].tolist()) for row in own] == [sorted(r[r != 1].tolist()) for r in other]
        # in one forward, what it computes in several
        width = max(row.shape[1] for row in rows)
        padded = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=1) for row in rows]
        sample["net_input"]["src_tokens"] = torch.stack(padded, dim=1).flatten(0, 1)
        logs = stock.update([reference]), ours.update([sample])
        assert logs[0]["loss"] * np.log(2) == pytest.approx(logs[1]["loss"], abs=1e-3)
    assert_same_update(stock, ours, "commonsense")
    assert len(dataset.rows) > len(pair.examples)  # those with another number of choices


def test_heads_of_other_datasets_change_nothing(data):
    args = arguments(heads, data, "--dataset", "pairs", "--updates", "3", "--heads", "5")
    both = heads.sides(args)
    one, many = both["one"], both["many"]
    assert list(many.model.heads) == [f"pairs_{number}" for number in range(5)]
    many.model.encoder.load_state_dict(one.model.encoder.state_dict())
    many.model.heads["pairs_2"].load_state_dict(one.model.heads["pairs"].state_dict())
    others = {name: value.clone() for name, value in many.model.heads["pairs_4"].named_parameters()}
    decay = 1.0
    for examples in overhead.sub_batches(one, args):
        sample = one.collate(examples)
        logs = one.update([sample]), many.update([sample | {"dataset": 2}])
        assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], abs=1e-6)
        decay *= 1 - 1e-5 * 0.1
    for name, value in one.model.encoder.named_parameters():
        torch.testing.assert_close(many.model.encoder.get_parameter(name), value, rtol=1e-5, atol=1e-7)
    # what a gradient of zero does to heads that were never used: weight decay, and that is all
    for name, value in many.model.heads["pairs_4"].named_parameters():
        torch.testing.assert_close(value, others[name] * decay, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "words",
    [("overhead", "--dataset", "pairs"), ("heads", "--dataset", "pairs", "--heads", "4")],
    ids=["overhead", "heads"],
)
def test_figures_of_updates(data, capsys, words):
    result = printed(capsys, words[0], str(data), *words[1:], "--updates", "3")
    (target,) = result["targets"]
    assert target["value"] == result["figures"]["ratio"]["median"] > 0
    assert result["figures"]["ratio"]["n"] == 3


def test_figures_of_choices(data, capsys):
    result = printed(capsys, "choices", str(data), "--datasets", "choices", "--updates", "2", "--rounds", "1")
    (target,) = result["targets"]
    figures = result["figures"]["choices"]
    assert target["value"] == pytest.approx(figures["ratio"]["median"], rel=1e-3)
    assert figures["updates"]["muppet"] == figures["updates"]["same batches"] == 2


def test_wrong_datasets_are_one_sentence(data, capsys):
    assert main(["overhead", str(data), "--dataset", "choices", *SMALL]) == 1
    assert "name a dataset of the family classification" in capsys.readouterr().err
    assert main(["choices", str(data), "--datasets", "pairs", *SMALL]) == 1
    assert "name datasets of the family commonsense" in capsys.readouterr().err
    assert main(["overhead", str(data), "--dataset", "pairs", "--updates", "1000", *SMALL]) == 1
    assert "lower --updates" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_of_whole_processes(data, capsys):
    result = printed(capsys, "memory", str(data), "--length", "16", "--updates", "2", "--processes", "1")
    figures = result["figures"]
    for kind in ("fairseq", "muppet"):
        # importing PyTorch alone takes more than 100 MB, and at times more than a tiny model in training
        assert 1e8 < figures[kind]["imports"]["median"] <= figures[kind]["peak"]["median"]
    assert result["targets"][0]["value"] == pytest.approx(
        figures["muppet"]["peak"]["median"] / figures["fairseq"]["peak"]["median"], rel=1e-3
    )


def test_memory_has_sub_batches_of_one_shape(data, tmp_path):
    args = arguments(memory, data, "--length", "16", "--updates", "2")
    memory.write_data(args, tmp_path)
    own = arguments(overhead, tmp_path, "--dataset", memory.NAME, "--updates", "2")
    stock, ours = overhead.sides(own)
    shapes = {tuple(ours.collate(e)["net_input"]["src_tokens"].shape) for e in overhead.sub_batches(ours, own)}
    assert shapes == {(128 // 16, 16)}
    assert {int(stock.dataset.num_tokens(number)) for number in range(len(stock.dataset))} == {16}


def test_ways_of_tuning_step_on_the_same_sub_batch(data, tmp_path):
    args = arguments(tuning, data, "--lengths", "16", "--rounds", "1", "--updates", "2")
    args.length = 16
    memory.write_data(args, tmp_path)
    words = tuning.ways(args, tmp_path)
    seconds, trained = tuning.timed(args, words)
    assert list(seconds) == list(trained) == list(tuning.WAYS)
    width, classes = 64, 2
    head = (width + 1) * width + (width + 1) * classes
    assert trained["prompts_20"] == 20 * width + head
    assert trained["prompts_100"] == 100 * width + head
    assert head < trained["bitfit"] < trained["adapters"] < trained["all"]
    for way, (options, _) in tuning.WAYS.items():
        assert (str(tmp_path / "backbone.pt") in words[way]) == bool(options)


@pytest.mark.slow
def test_memory_of_tuning_is_of_whole_processes(data, capsys):
    more = ("--lengths", "16", "--rounds", "2", "--updates", "2", "--processes", "1")
    result = printed(capsys, "tuning", str(data), *more)
    figures = result["figures"]["16"]
    assert all(figures[way]["peak"]["median"] > 1e6 for way in tuning.WAYS)
    ratios = {way: [figures[way][f"{what}_ratio"]["median"] for what in ("step", "peak")] for way in [*tuning.WAYS][1:]}
    assert [target["value"] for target in result["targets"]] == [value for both in ratios.values() for value in both]
    assert [target["bound"] for target in result["targets"]] == [2.25, 2.25, 7.25, 7.25, 1, 1, 1, 1]
