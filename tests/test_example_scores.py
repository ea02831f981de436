"""What each example contributes to its dataset's metric: equal to leaving it out and judging the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muppet_fairseq.families import FAMILIES
from muppet_fairseq.metrics.correlation import pearson, pearson_without_each
from muppet_fairseq.metrics.jackknife import pseudo_values
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trees import Tree

Judged = list[tuple[dict[str, Any], dict[str, Any]]]
#: metrics that are a mean over examples
MEANS = {"commonsense", "mrc", "summarization", "classification accuracy"}
CLASSES = ("a", "b", "c")
TREES = [
    Tree.parse(f"(S {text} (. .))")
    for text in (
        *("(NP (NN a)) (VP (VB is))", "(NP (DT the) (NN a)) (VP (VB is) (NP (NN b)))"),
        *("(NP (NP (NN a)) (NP (NN b))) (VP (VB is))", "(NN a)", "(NP (NN a) (NN b)) (X (Y (NN c)))"),
    )
]
#: a tree with no bracket that counts
BARE = Tree.parse("(TOP (NN a))")


def pairs(prediction: str, gold: str, values: st.SearchStrategy, predicted: st.SearchStrategy | None = None) -> Any:
    """A prediction and an example with these keys."""
    return st.tuples(values if predicted is None else predicted, values).map(
        lambda both: ({prediction: both[0]}, {gold: both[1]})
    )


def tagged(size: int) -> st.SearchStrategy:
    tags = st.lists(st.sampled_from(["O", "B-NP", "I-NP", "B-VP", "I-VP"]), min_size=size, max_size=size)
    return pairs("tags", "tags", tags)


def parsed(gold: Tree, predicted: Tree, cut: int) -> tuple[dict, dict]:
    """A gold tree, and the labels of another one, cut or lengthened to its number of words."""
    labels = (predicted.labels() * 9)[cut : cut + len(gold.words)]
    return {"tags": labels}, {"words": list(gold.words), "tags": gold.labels(), "tree": gold.text()}


numbers = st.integers(0, 20).map(lambda quarters: quarters / 4) | st.floats(-1e4, 1e4, width=16)
texts = st.lists(st.sampled_from(["the", "dog", "is", "a", "cat", "dogs"]), max_size=5).map(" ".join)
classified = pairs("label", "label", st.sampled_from(CLASSES))
answers = st.lists(texts, max_size=2).map(lambda golds: [{"text": gold} for gold in golds])
EXAMPLES = {
    "classification": classified,
    "classification multirc": st.tuples(classified, st.sampled_from("pqr")).map(
        lambda drawn: (drawn[0][0], drawn[0][1] | {"question": drawn[1]})
    ),
    "commonsense": pairs("choice", "answer", st.integers(0, 2)),
    "mrc": pairs("text", "answers", answers, texts),
    "summarization": pairs("text", "target", texts),
    "regression": pairs("value", "label", numbers),
    "tagging": st.integers(1, 6).flatmap(tagged),
    "tagging bracket_f1": st.builds(parsed, st.sampled_from([*TREES, BARE]), st.sampled_from(TREES), st.integers(0, 3)),
}
CASES = [(family.name, metric) for family in FAMILIES.values() for metric in family.metric_names]


def scored(judged: Judged, spec: DatasetSpec) -> tuple[float, list[float]]:
    """The main metric, and the examples' scores."""
    predictions, examples = [list(side) for side in zip(*judged, strict=True)]
    return main(judged, spec), FAMILIES[spec.family].example_scores(predictions, examples, spec)


def main(judged: Judged, spec: DatasetSpec) -> float:
    predictions, examples = [list(side) for side in zip(*judged, strict=True)]
    return next(iter(FAMILIES[spec.family].evaluate(predictions, examples, spec).values()))


def left_out(judged: Judged, spec: DatasetSpec, place: int) -> float:
    """The jackknife's value of one example, by judging all and all others."""
    count = len(judged)
    return count * main(judged, spec) - (count - 1) * main(judged[:place] + judged[place + 1 :], spec)


def a_spec(family: str, metric: str) -> DatasetSpec:
    return DatasetSpec("d", family, metric, CLASSES)


@pytest.mark.parametrize(("family", "metric"), CASES)
@settings(max_examples=40)
@given(data=st.data())
def test_scores_are_those_of_leaving_one_out(family: str, metric: str, data: st.DataObject):
    name = f"{family} {metric}"
    strategy = EXAMPLES.get(name, EXAMPLES[family])
    judged = data.draw(st.lists(strategy, min_size=2, max_size=12))
    spec = a_spec(family, metric)
    value, scores = scored(judged, spec)
    assert scores == pytest.approx([left_out(judged, spec, place) for place in range(len(judged))], abs=1e-7)
    if {family, name} & MEANS:
        assert scores == [main([one], spec) for one in judged]
        assert np.mean(scores) == pytest.approx(value, abs=1e-12)
    if {family, name} & MEANS or family == "classification":  # one alone has no correlation, no chunk and no bracket
        assert scored(judged[:1], spec)[1] == [main(judged[:1], spec)]


@pytest.mark.parametrize("metric", FAMILIES["tagging"].metric_names)
def test_a_single_sentence_has_the_metric_itself(metric: str):
    judged = [parsed(TREES[0], TREES[1], 0)]
    value, scores = scored(judged, a_spec("tagging", metric))
    assert scores == [value]


def test_pseudo_values_of_f1_by_hand():
    """F1 of b is 2/3 (one right, one gold missed): 1 without the miss, 0 without the hit, 2/3 without what is a."""
    spec = DatasetSpec("d", "classification", "f1", ("a", "b"))
    judged = [({"label": p}, {"label": g}) for p, g in ("bb", "ab", "aa")]
    value, scores = scored(judged, spec)
    assert value == pytest.approx(2 / 3)
    assert scores == pytest.approx([2 - 2 * 0, 2 - 2 * 1, 2 - 2 * 2 / 3])
    assert pseudo_values(0.5, np.array([0.5, 0.25])) == [0.5, 0.75]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1e6, 1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 5.0, 1.0]),  # without the first, x is spread a millionth as wide
        ([1.0, 2.0, 4.0, 3.0], [7.0, 7.0, 1e9, 7.0]),  # without the third, y is constant
        ([0.1] * 7, [1.0, 2.0, 4.0, 3.0, 5.0, 7.0, 6.0]),  # whose mean is not exactly 0.1
        ([1.0, 2.0], [2.0, 1.0]),
        ([1000.01, 1000.02, 1000.05, 1000.03, 1000.0], [1.0, 2.0, 4.0, 3.0, 5.0]),
    ],
)
def test_pearson_without_each_pair_where_digits_could_be_lost(x: list[float], y: list[float]):
    for first, second in ((x, y), (y, x)):
        expected = [pearson(np.delete(first, i), np.delete(second, i)) for i in range(len(x))]
        assert pearson_without_each(first, second) == pytest.approx(expected, abs=1e-9)


def test_a_prediction_that_is_no_number_is_not_hidden():
    judged = [({"value": x}, {"label": y}) for x, y in ((1.0, 2.0), (float("nan"), 1.0), (3.0, 3.0), (2.0, 4.0))]
    for metric in ("pearson", "spearman"):
        assert all(np.isnan(scored(judged, a_spec("regression", metric))[1]))


def number_pair(rng: np.random.Generator) -> tuple[dict, dict]:
    x, y = rng.normal(size=2).tolist()
    return {"value": x + y}, {"label": y}


def class_pair(rng: np.random.Generator) -> tuple[dict, dict]:
    predicted, gold = rng.integers(3, size=2)
    return {"label": CLASSES[predicted]}, {"label": CLASSES[gold]}


def tag_pair(rng: np.random.Generator) -> tuple[dict, dict]:
    first, second = rng.choice(["O", "B-NP", "I-NP", "B-VP"], size=(2, rng.integers(1, 12))).tolist()
    return {"tags": first}, {"tags": second}


@pytest.mark.parametrize(
    ("family", "metric", "draw"),
    [
        ("classification", "f1", class_pair),
        ("classification", "matthews", class_pair),
        ("regression", "pearson", number_pair),
        ("tagging", "chunk_f1", tag_pair),
    ],
)
def test_forty_thousand_examples_take_no_square_of_it(family: str, metric: str, draw: Callable):
    """As many as QQP has. If every example took a pass over all, this would take hours."""
    rng = np.random.default_rng(1)
    judged = [draw(rng) for _ in range(40_000)]
    spec = a_spec(family, metric)
    _, scores = scored(judged, spec)
    assert len(scores) == 40_000
    for place in (0, 17, 39_999):
        assert scores[place] == pytest.approx(left_out(judged, spec, place), abs=1e-6)
    assert json.loads(json.dumps(scores)) == scores
