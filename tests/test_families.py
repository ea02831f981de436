"""Families: the uniform prediction costs 1 after scaling, losses and metrics equal independent references."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import BLOCK, RunningSum, fit_pair
from muppet_fairseq.families.mrc import best_answers, token_span
from muppet_fairseq.metrics.confusion import CONFUSION_METRICS
from muppet_fairseq.spec import DatasetSpec
from tests.toy_suite import open_task

#: one of each family, at least
DATASETS = ("animals", "pairs", "choices", "spans", "summaries", "counts", "tags", "trees")


class Constant(torch.nn.Module):
    """A model whose head gives every row, or every position, the same scores."""

    def __init__(self, outputs: int, value: float, *, by_token: bool = False) -> None:
        super().__init__()
        self.outputs, self.value, self.by_token = outputs, value, by_token

    def forward(self, src_tokens: torch.Tensor, head: str) -> torch.Tensor:
        shape = (*src_tokens.shape, self.outputs) if self.by_token else (len(src_tokens), self.outputs)
        return torch.full(shape, self.value)


def scaled_losses(family: str, model: torch.nn.Module, sample: dict, label_smoothing: float = 0.0) -> torch.Tensor:
    """Each example's loss as the criterion scales it by default."""
    criterion = SimpleNamespace(loss_scaling="log")
    logits = FAMILIES[family].logits(model, sample, "head")
    losses = FAMILIES[family].loss(logits, sample, label_smoothing)
    return losses * MuppetCriterion.weights(criterion, FAMILIES[family].num_predictions(logits, sample), 0)


values = st.floats(-50, 50, width=32)


@given(st.integers(2, 1000), values)
def test_uniform_classification_costs_one(classes, value):
    sample = {
        "net_input": {"src_tokens": torch.zeros(3, 5, dtype=torch.long)},
        "target": torch.tensor([0, classes - 1, classes // 2]),
    }
    losses = scaled_losses("classification", Constant(classes, value), sample)
    torch.testing.assert_close(losses, torch.ones(3), atol=1e-6, rtol=0)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), values)
def test_uniform_commonsense_costs_one_whatever_the_number_of_choices(counts, value):
    is_choice = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    sample = {
        "net_input": {"src_tokens": torch.zeros(sum(counts), 4, dtype=torch.long)},
        "is_choice": is_choice,
        "cell": is_choice.flatten().nonzero().squeeze(1),
        "target": torch.tensor([count - 1 for count in counts]),
    }
    losses = scaled_losses("commonsense", Constant(1, value), sample)
    torch.testing.assert_close(losses, torch.ones(len(counts)), atol=1e-6, rtol=0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 200)), min_size=1, max_size=4), values)
def test_uniform_mrc_costs_one_whatever_the_number_of_positions(parts, value):
    width = 1 + max(question + passage for question, passage in parts)
    candidates = torch.zeros(len(parts), width, dtype=torch.bool)
    for line, (question, passage) in zip(candidates, parts, strict=True):
        line[0] = True
        line[1 + question : 1 + question + passage] = True
    sample = {
        "net_input": {"src_tokens": torch.zeros(len(parts), width, dtype=torch.long)},
        "candidates": candidates,
        "target": torch.tensor([[1 + question, question + passage] for question, passage in parts]),
    }
    losses = scaled_losses("mrc", Constant(2, value, by_token=True), sample)
    torch.testing.assert_close(losses, torch.ones(len(parts)), atol=1e-6, rtol=0)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(2, 5000),
    values,
    st.floats(0, 0.99, exclude_max=True),
)
def test_uniform_summarization_costs_one_whatever_the_lengths_and_the_smoothing(lengths, vocabulary, value, smoothing):
    sample = summary_sample(lengths, vocabulary)

    def model(src_tokens, prev_output_tokens, predicted):
        return torch.full((len(predicted), vocabulary), value)

    losses = scaled_losses("summarization", model, sample, smoothing)
    torch.testing.assert_close(losses, torch.ones(len(lengths)), atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(2, 500), values)
def test_uniform_tagging_costs_one_whatever_the_number_of_words(counts, classes, value):
    is_word = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    sample = {
        "net_input": {"src_tokens": torch.zeros(len(counts), 12, dtype=torch.long)},
        "starts": is_word * (torch.arange(max(counts)) + 1),
        "target": torch.where(is_word, classes - 1, -1),
        "num_words": torch.tensor(counts),
    }
    losses = scaled_losses("tagging", Constant(classes, value, by_token=True), sample)
    torch.testing.assert_close(losses, torch.ones(len(counts)), atol=1e-5, rtol=0)


def summary_sample(lengths, vocabulary):
    """Targets of these lengths, with tokens of all kinds but padding."""
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    predicted = is_token.flatten().nonzero().squeeze(1)
    return {
        "net_input": {"src_tokens": torch.zeros(len(lengths), 3, dtype=torch.long)},
        "prev_output_tokens": torch.zeros(is_token.shape, dtype=torch.long),
        "predicted": predicted,
        "target": torch.randint(vocabulary, (len(predicted),)),
        "target_lengths": torch.tensor(lengths),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_summarization_loss_is_the_mean_of_fairseqs_label_smoothed_loss_over_tokens(smoothing):
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    vocabulary, lengths = 37, [4, 1, 7]
    sample = summary_sample(lengths, vocabulary)
    logits = torch.randn(sum(lengths), vocabulary)
    losses = FAMILIES["summarization"].loss(logits, sample, smoothing)
    # fairseq spreads its epsilon over the other classes, torch (and we) over all
    epsilon = smoothing * (vocabulary - 1) / vocabulary
    for loss, part, target in zip(losses, logits.split(lengths), sample["target"].split(lengths), strict=True):
        expected, _ = label_smoothed_nll_loss(part.log_softmax(dim=1), target[:, None], epsilon)
        torch.testing.assert_close(loss, expected / len(target))


def test_regression_is_not_scaled():
    sample = {"net_input": {"src_tokens": torch.zeros(3, 5, dtype=torch.long)}, "target": torch.tensor([1.0, 2.0, 4.0])}
    losses = scaled_losses("regression", Constant(1, 2.0), sample)
    torch.testing.assert_close(losses, torch.tensor([1.0, 0.0, 4.0]))


@given(st.lists(st.tuples(st.floats(0, 5, width=32), st.floats(0, 5, width=32)), min_size=2, max_size=60))
def test_pearson_from_sums_is_the_pearson_of_the_pairs(pairs):
    spec = DatasetSpec("stsb", "regression", "pearson")
    x, y = torch.tensor(pairs).T
    statistics = sum(
        FAMILIES["regression"].statistics(predicted, {"target": gold}, spec)
        for predicted, gold in zip(x.split(16), y.split(16), strict=True)
    )
    value = FAMILIES["regression"].metrics(statistics.numpy(), spec)["pearson"]
    if min(x.double().std(), y.double().std()) > 0.1:
        assert value == pytest.approx(float(np.corrcoef(x.double(), y.double())[0, 1]), abs=1e-3)
    else:
        assert -1 <= value <= 1


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "regression"])
def test_uniform_property_covers_every_family(family):
    assert f"test_uniform_{family}" in " ".join(globals())


def test_choices_of_one_question_do_not_see_those_of_another():
    counts = [2, 4, 3]
    is_choice = torch.arange(4) < torch.tensor(counts)[:, None]
    scores = torch.randn(9)
    sample = {
        "net_input": {"src_tokens": torch.zeros(9, 4, dtype=torch.long)},
        "is_choice": is_choice,
        "cell": is_choice.flatten().nonzero().squeeze(1),
        "target": torch.tensor([1, 3, 0]),
    }
    logits = FAMILIES["commonsense"].logits(lambda src_tokens, head: scores[:, None], sample, "head")
    losses = FAMILIES["commonsense"].loss(logits, sample, 0.0)
    for row, (part, target) in enumerate(zip(scores.split(counts), sample["target"], strict=True)):
        torch.testing.assert_close(losses[row], F.cross_entropy(part, target))


def test_span_loss_is_the_mean_of_start_and_end_as_in_transformers():
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForQuestionAnswering(config).eval()
    tokens, target = torch.randint(5, 50, (3, 12)), torch.tensor([[1, 4], [0, 0], [7, 11]])
    reference = model(tokens, start_positions=target[:, 0], end_positions=target[:, 1])
    logits = torch.stack([reference.start_logits, reference.end_logits], dim=2)
    torch.testing.assert_close(FAMILIES["mrc"].loss(logits, {"target": target}, 0.0).mean(), reference.loss)


def test_multiple_choice_loss_equals_transformers():
    from transformers import BertConfig, BertForMultipleChoice

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForMultipleChoice(config).eval()
    tokens, target = torch.randint(5, 50, (3, 4, 12)), torch.tensor([1, 0, 3])
    reference = model(tokens, labels=target)
    torch.testing.assert_close(
        FAMILIES["commonsense"].loss(reference.logits, {"target": target}, 0.0).mean(), reference.loss
    )


@given(st.integers(1, 600), st.integers(1, 600), st.integers(2, 510))
def test_pairs_are_cut_from_the_longer_part(first, second, room):
    if first + second <= room:
        return
    kept = fit_pair(first, second, room)
    assert sum(kept) == room
    assert kept[0] <= first
    assert kept[1] <= second
    assert min(kept) >= min(first, second, room // 2)


def confusion_of(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), classes).float()
    spec = DatasetSpec("d", "classification", "accuracy", tuple(map(str, range(classes))))
    counts = FAMILIES["classification"].statistics(logits, {"target": torch.from_numpy(gold)}, spec)
    return counts.numpy().reshape(classes, classes).astype(float)


@given(st.integers(1, 2 * BLOCK + 99), st.integers(0, 3), st.integers(0, 2**32 - 1), st.data())
def test_running_sums_are_those_of_all_counts(length, most, seed, drawn):
    counts = np.random.default_rng(seed).integers(0, most + 1, length).astype(np.int32)
    ends = np.cumsum(counts, dtype=np.int64)
    sums = RunningSum(length, lambda begin, end: counts[begin:end])
    assert sums.total == ends[-1]
    item = drawn.draw(st.integers(0, length))
    assert sums.before(item) == (ends[item - 1] if item else 0)
    if sums.total:
        part = drawn.draw(st.integers(0, sums.total - 1))
        item, number = sums.find(part)
        assert 0 <= number < counts[item]
        assert ends[item] - counts[item] + number == part


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 999))
def test_metrics_from_counts_equal_scikit_learn(classes, size, seed):
    from sklearn import metrics as reference

    rng = np.random.default_rng(seed)
    gold, predicted = rng.integers(0, classes, size), rng.integers(0, classes, size)
    confusion = confusion_of(gold, predicted, classes)
    assert CONFUSION_METRICS["accuracy"](confusion) == pytest.approx(reference.accuracy_score(gold, predicted))
    expected = reference.matthews_corrcoef(gold, predicted) if len({*gold, *predicted}) > 1 else 0.0
    assert CONFUSION_METRICS["matthews"](confusion) == pytest.approx(expected)
    macro = reference.f1_score(gold, predicted, labels=range(classes), average="macro", zero_division=0)
    assert CONFUSION_METRICS["macro_f1"](confusion) == pytest.approx(macro)
    if classes == 2:
        f1 = reference.f1_score(gold, predicted, zero_division=0)
        assert CONFUSION_METRICS["f1"](confusion) == pytest.approx(f1)


def test_token_span_covers_the_answers_characters():
    offsets = np.array([[0, 3], [4, 9], [9, 10], [11, 15]])  # "the tower: 1889"
    assert token_span(offsets, {"text": "tower", "start": 4}) == (1, 1)
    assert token_span(offsets, {"text": " tower: ", "start": 3}) == (1, 2)
    assert token_span(offsets, {"text": "88", "start": 12}) == (3, 3)
    assert token_span(offsets, {"text": "the tower: 1889", "start": 0}) == (0, 3)


def test_answers_are_scored_by_golds_where_an_example_lists_them():
    example = {"question": "who?", "passage": "Wick came.", "answers": [{"text": "Wick", "start": 0}]}
    aliases = example | {"golds": ["Ada Wick", "Mayor Wick"]}
    spec = DatasetSpec("trivia", "mrc", "squad")
    family, predictions = FAMILIES["mrc"], [{"text": "the mayor, Wick"}]
    assert family.evaluate(predictions, [example], spec) == {"f1": pytest.approx(2 / 3), "em": 0.0}
    assert family.evaluate(predictions, [aliases], spec) == {"f1": 1.0, "em": 1.0}
    assert family.check(aliases, ()) is None
    for golds in ([], ["Wick", " "]):
        assert family.check(example | {"golds": golds}, ()) == "it lists no gold text, or an empty one"


def mrc_sample(passages: list[dict], width: int) -> dict:
    rows = sum(len(p["starts"]) for p in passages)
    return {"passages": passages, "net_input": {"src_tokens": torch.zeros(rows, width)}}


@given(st.integers(0, 9999), st.booleans())
def test_best_answer_over_windows_equals_a_search_over_all_spans(seed, allow_empty):
    """Two windows of one passage of 12 tokens, ten and four of them, three shared."""
    rng = np.random.default_rng(seed)
    text = "aa bb cc dd ee ff gg hh ii jj kk ll"
    offsets = np.array([[3 * i, 3 * i + 2] for i in range(12)])
    starts, widths = [(4, 0), (4, 8)], [10, 4]
    logits = torch.full((2, 15, 2), -math.inf)
    for line, width in zip(logits, widths, strict=True):
        line[0] = torch.from_numpy(rng.normal(size=2))
        line[4 : 4 + width] = torch.from_numpy(rng.normal(size=(width, 2)))
    passage = {"starts": starts, "passage": text, "golds": [], "entities": [], "offsets": offsets}
    answer = best_answers(logits, mrc_sample([passage], 15), allow_empty=allow_empty)[0]

    spans = {}
    for row, ((first, token), width) in enumerate(zip(starts, widths, strict=True)):
        for i in range(width):
            for j in range(i, width):
                score = float(logits[row, first + i, 0] + logits[row, first + j, 1])
                spans[score] = text[offsets[token + i, 0] : offsets[token + j, 1]]
    best = max(spans)
    null = min(float(logits[row, 0].sum()) for row in range(2))
    if allow_empty and null > best:
        assert (answer["text"], answer["score"]) == ("", pytest.approx(null))
    else:
        assert (answer["text"], answer["score"]) == (spans[best], pytest.approx(best))
        assert text[answer["start"] : answer["end"]] == answer["text"]


def test_a_passage_with_nothing_to_answer_with_gets_the_empty_answer():
    """One without tokens, and one whose only entity is longer than what its two windows share."""
    logits = torch.full((3, 8, 2), -math.inf)
    logits[:, 0] = torch.tensor([[1.0, 2.0], [0.5, 0.25], [0.5, 0.0]])
    logits[1:, 4:6] = 3.0
    without = {"starts": [(4, 0)], "passage": "\u200b", "golds": [], "entities": [], "offsets": np.empty((0, 2), int)}
    offsets = np.array([[0, 2], [3, 5], [6, 8]])
    long = {"starts": [(4, 0), (4, 1)], "passage": "aa bb cc", "golds": [], "offsets": offsets}
    long["entities"] = [{"text": "aa bb cc", "start": 0}]
    answers = best_answers(logits, mrc_sample([without, long], 8), allow_empty=False)
    assert answers == [
        {"text": "", "start": 0, "end": 0, "score": 3.0},
        {"text": "", "start": 0, "end": 0, "score": 0.5},
    ]


@pytest.mark.parametrize("training", [True, False])
def test_items_are_as_long_as_said_and_of_the_examples_said(data, training):
    task = open_task(data, ",".join(DATASETS), train_subset="train" if training else "none")
    task.load_dataset("train" if training else "valid")
    for dataset in task.datasets["train" if training else "valid"].datasets:
        items = [dataset[index] for index in range(len(dataset))]
        assert dataset.rows.tolist() == [len(item["rows"]) for item in items]
        if FAMILIES[dataset.data.spec.family].generates:  # there the text to write counts, too
            lengths = [max(len(item["rows"][0]), len(item["target"])) for item in items]
        else:
            lengths = [max(map(len, item["rows"])) for item in items]
        assert dataset.lengths.tolist() == lengths
        assert dataset.example_of(np.arange(len(dataset))).tolist() == [item["id"] for item in items]
        assert dataset.num_examples == items[-1]["id"] + 1
