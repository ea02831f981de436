"""The benchmarks of the schedule count what training computes."""

import numpy as np
import pytest

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
