"""The benchmarks of the schedule count what training computes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import balance, padding, planning
from benchmarks.__main__ import main
from benchmarks.corpus import FORMS, DatasetLengths, corpus, laid_out
from muppet_fairseq.suite import Suite
from preprocess.catalog import CATALOG
from tests.toy_suite import BART_NAMES, ROOT, open_task


def stored_sizes(dataset) -> DatasetLengths:
    """Those of a dataset's streams on the disk."""
    data, family = dataset.data, dataset.data.spec.family
    sides = ("source", "target") if family == "summarization" else ("input0", "input1")[: data.spec.num_inputs]
    sizes = [np.array(data.tokens(side).sizes) for side in sides]
    choices = data.scalars("num_choices") if family == "commonsense" else None
    new_passage = data.scalars("new_passage") if family == "mrc" else None
    return DatasetLengths(data.spec.name, family, sizes[0], dict(enumerate(sizes)).get(1), choices, new_passage)


@pytest.mark.parametrize("max_positions", [16, 32])
def test_stored_sizes_are_laid_out_as_by_the_families(data, max_positions):
    task = open_task(data, ",".join(BART_NAMES), max_positions=max_positions, window_overlap=5)
    task.load_dataset("train")
    for dataset in task.datasets["train"].datasets:
        laid = laid_out(stored_sizes(dataset), max_positions, window_overlap=5)
        assert np.array_equal(laid.sizes.lengths, dataset.lengths)
        assert np.array_equal(laid.sizes.rows, dataset.rows)
        items = [dataset[item] for item in range(len(dataset))]
        assert laid.encoder.tolist() == [sum(map(len, item["rows"])) for item in items]
        if dataset.data.spec.family == "summarization":
            assert laid.sizes.written.tolist() == dataset.written.tolist() == [len(item["target"]) for item in items]


def test_the_corpus_is_the_papers():
    assert list(FORMS) == Suite.load(ROOT / "examples/suites/paper.yaml").names
    drawn, again = list(corpus(scale=0.01)), list(corpus(scale=0.01))
    for dataset, same in zip(drawn, again, strict=True):
        entry = CATALOG[dataset.name]
        assert dataset.family == entry.family
        assert len(dataset.first) == max(1, round(entry.published["train"] / 100))
        assert np.array_equal(dataset.first, same.first)
        if entry.family == "classification":
            assert (dataset.second is None) == (len(entry.fields["inputs"]) == 1)


@pytest.mark.parametrize("max_tokens", [130, 400])
def test_padding_is_that_of_the_samples(data, max_tokens):
    """The decoder's, too; and the same of a corpus with the sizes of these data."""
    task = open_task(data, ",".join(BART_NAMES), max_positions=32, window_overlap=5)
    task.load_dataset("train")
    datasets = task.datasets["train"].datasets
    laid = [(d.data.spec.family, laid_out(stored_sizes(d), 32, window_overlap=5)) for d in datasets]
    of_drawn, of_collated = padding.of_lengths(laid, max_tokens), padding.of_samples(task, max_tokens)
    assert set(of_drawn) == {"classification", "commonsense", "mrc", "summarization"}
    assert {f: c.tolist() for f, c in of_drawn.items()} == {f: c.tolist() for f, c in of_collated.items()}


def test_the_benchmarks_run(data, tmp_path, capsys):
    def figures(*words: str) -> dict:
        assert main(list(words)) == 0
        return json.loads(capsys.readouterr().out)

    drawn = figures("padding", "--scale", "0.002", "--max-tokens", "4400")
    assert 0 < drawn["figures"]["4400"]["all"] == drawn["targets"][0]["value"] < 0.3
    own = figures("padding", str(data), "--suite", "animals,choices", "--max-tokens", "200", "--max-positions", "32")
    assert set(own["figures"]["200"]) == {"classification", "commonsense", "all"}
    loads = figures("balance", "--scale", "0.01", "--workers", "4", "--max-tokens", "4400")
    assert [target["bound"] for target in loads["targets"]] == [0.95, 0.98]
    assert loads["figures"]["4400"]["largest"] <= 4400
    assert main(["padding", str(data)]) == 1
    assert "--suite is missing" in capsys.readouterr().err


def test_what_planning_measures(tmp_path):
    items = planning.write_sizes(tmp_path, 20_000)
    written = planning.read_sizes(tmp_path)
    assert sum(len(sizes.lengths) for sizes in written) == items > 20_000
    drawn = [laid_out(dataset).sizes for dataset in corpus(20_000 / 4_404_219)]
    for sizes, same in zip(written, drawn, strict=True):
        assert np.array_equal(sizes.lengths, same.lengths)
        assert np.array_equal(sizes.rows, same.rows)
    figures = planning.measure(tmp_path, workers=4, max_tokens=4400, rounds=1)
    assert figures["sub_batches"] > 46
    assert figures["seconds"]["n"] == 1


def test_evenness_is_of_the_workers_sums():
    schedule = SimpleNamespace(updates=np.array([[0, 1, 2, -1]]), cost=np.array([4, 2, 2]))
    assert balance.evenness(schedule, workers=2, update_freq=2).tolist() == [1.0]
    assert balance.evenness(schedule, workers=4, update_freq=1).tolist() == [0.5]
