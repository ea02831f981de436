"""The data of the benchmark ``startup`` are as a dataset's own, and what is kept of them does not grow with them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks import corpus, startup
from benchmarks.__main__ import main
from benchmarks.corpus import FORMS, laid_out
from benchmarks.training import open_task

#: of each family
NAMES = ("ag_news", "multi_news", "swag", "squad")


@pytest.fixture(scope="module")
def bins(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "FORMS", {name: FORMS[name] for name in NAMES})
        return {scale: startup.write_corpus(folder / f"{scale}", data, scale) for scale in (0.003, 0.03)}


def test_the_data_are_of_the_corpus_lengths(bins, monkeypatch):
    monkeypatch.setattr(corpus, "FORMS", {name: FORMS[name] for name in NAMES})
    task = open_task(bins[0.003], ",".join(NAMES), 512)
    sizes = task.datasets["train"].sizes_by_dataset()
    for lengths, own in zip(corpus.corpus(0.003), sizes, strict=True):
        expected = laid_out(lengths).sizes
        assert own.name == expected.name
        assert np.array_equal(own.lengths, expected.lengths)
        assert np.array_equal(own.rows, expected.rows)


def test_what_is_kept_does_not_grow_with_the_examples(bins):
    # what is the same for all is loaded before
    open_task(bins[0.003], ",".join(NAMES), 512)
    kept, examples = [], []
    for path in bins.values():
        tracemalloc.start()
        train = open_task(path, ",".join(NAMES), 512).datasets["train"]
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        examples.append(sum(dataset.num_examples for dataset in train.datasets))
    assert examples[1] > 9 * examples[0]
    # one byte of each would be more
    assert kept[1] - kept[0] < 0.7 * (examples[1] - examples[0])


def test_data_that_are_there_are_not_written_again(bins, data, monkeypatch):
    monkeypatch.setattr(startup, "binarize", None)
    monkeypatch.setattr(corpus, "FORMS", {name: FORMS[name] for name in NAMES})
    assert startup.write_corpus(bins[0.003], data, 0.003) == bins[0.003]


@pytest.mark.slow
def test_from_the_command_to_the_first_update(data, tmp_path, capsys):
    arguments = ["startup", str(data), "--folder", str(tmp_path), "--arch", "muppet_bart_tiny", "--starts", "1"]
    arguments += ["--scale", "0.001", "--max-positions", "64"]
    assert main([*arguments, "--max-tokens", "320"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["stages"]) == list(startup.STAGES)
    total = sum(stage["median"] for stage in printed["stages"].values())
    assert printed["seconds"]["median"] == printed["targets"][0]["value"] == pytest.approx(total, rel=0.01)
    # a process that has imported PyTorch
    assert printed["process"]["anonymous"]["median"] > 100
    assert main([*arguments, "--max-tokens", "10"]) == 1
    assert "fairseq-train has ended before 'optimizer, plan' was done: " in capsys.readouterr().err
