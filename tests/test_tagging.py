"""Tagging: words to tokens and back, chunks as conlleval, brackets as evalb, trees as labels, and real training."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muppet_fairseq import evaluate, release
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.encoded import EncodedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Layout
from muppet_fairseq.families.tagging import NO_TAG, first_tokens
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.metrics.brackets import bracket_counts
from muppet_fairseq.metrics.chunks import chunk_counts, tag_parts
from muppet_fairseq.models.heads import SpanHead, TokenHead
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.trained import TrainedModel
from muppet_fairseq.trees import Constituent, Tree
from preprocess.binarize import binarize
from preprocess.catalog import CATALOG
from preprocess.convert import Examples, Split
from preprocess.download import Fetch
from preprocess.prepare import prepare
from tests.toy_suite import logged, open_task, options, toy_entry, trained

FIXTURES = Path(__file__).parent / "fixtures" / "catalog"
TAGGING = FAMILIES["tagging"]
LABELS = ("B-NP", "B-VP", "I-NP", "O")
CHUNKS = DatasetSpec("tags", "tagging", "chunk_f1", LABELS)


# -- words and tokens ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(data: Path) -> Tokenizer:
    return Tokenizer.load(data / "tokenizer")


def starts_of(tokenizer: Tokenizer, words: list[str]) -> list[int]:
    (encoding,) = tokenizer.encode([" ".join(words)])
    return first_tokens(encoding, words).tolist()


def test_a_word_begins_at_its_first_token(bert: Tokenizer, gpt2: Tokenizer):
    assert starts_of(bert, ["the", "bee", "is", "a.b"]) == [0, 1, 4, 5]
    words = ["Strč", "😀", "n't", "naïveté", "'s", "...", "x"]
    starts = starts_of(gpt2, words)
    ids = gpt2.encode([" ".join(words)])[0].ids
    pieces = [gpt2.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    assert pieces == words


def test_a_word_without_a_token_has_none(bert: Tokenizer):
    assert starts_of(bert, ["the", "\u200b", "dog", "\x01", "\x02"]) == [0, -1, 1, -1, -1]
    assert starts_of(bert, ["\u0301", "dog"])[1] == 0
    assert starts_of(bert, ["\x01"]) == [-1]


WORD = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6).filter(lambda w: w.split() == [w])


@given(st.lists(WORD, min_size=1, max_size=8))
def test_every_words_token_covers_a_character_of_it(gpt2: Tokenizer, words: list[str]):
    (encoding,) = gpt2.encode([" ".join(words)])
    end = -1
    for start, word in zip(first_tokens(encoding, words), words, strict=True):
        begin, end = end + 1, end + 1 + len(word)
        assert start >= 0  # a byte-level tokenizer has a token for everything
        assert encoding.offsets[start, 0] < end
        assert encoding.offsets[start, 1] > begin


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"words": [], "tags": []}, "it has no words"),
        ({"tags": ["O"]}, "it has 2 words, but 1 tags"),
        ({"words": ["a b", "c"]}, "its word 1 is 'a b', empty or with white space"),
        ({"words": ["a", ""]}, "its word 2 is '', empty or with white space"),
        (
            {"words": ["a", "\u200b"]},
            "its word 2 is '\\u200b': control characters only, of which there may be no token",
        ),
        ({"tags": ["O", ""]}, "its word 2 has no tag"),
        ({"tags": ["O", "B-X"]}, "its word 2 has the tag 'B-X', which is none of the 4 that are known"),
        ({"tree": "(TOP (NN the) (NN dog)"}, "its tree cannot be read: it leaves a bracket open"),
        ({"tree": "(TOP (NN a) (NN dog))"}, "its tree has other words"),
        ({"tree": "(TOP (NN the) (NN dog))"}, "its tags are not the labels of its tree"),
    ],
)
def test_what_is_wrong_with_an_example_is_named(changes, fault):
    assert TAGGING.check({"words": ["the", "dog"], "tags": ["B-NP", "I-NP"], **changes}, LABELS) == fault


def test_unknown_tags_are_no_fault_where_the_labels_are_not_known_beforehand():
    assert TAGGING.check({"words": ["the"], "tags": ["B-X"]}, ()) is None


# -- layout and loss ----------------------------------------------------------------------------------


def laid_out(tokenizer: Tokenizer, examples: list[dict], *, training=False, spec=CHUNKS, positions=32):
    layout = Layout(0, 1, 2, len(tokenizer.dictionary), positions)
    return TAGGING.dataset(EncodedSplit(spec, examples, tokenizer), layout, training=training)


LONG = {"words": ["the", "dog", "is", "bee", "cat", "the", "cow"]}
LONG["tags"] = ["B-NP", "I-NP", "B-VP", "B-NP", "B-NP", "B-NP", "I-NP"]


def test_words_beyond_the_last_position_are_not_read(bert: Tokenizer):
    examples = [LONG, {"words": ["who", "\u200b", "is"], "tags": ["O", "O", "B-ADJP"]}]
    dataset = laid_out(bert, examples, positions=8)
    sample = dataset.collate([dataset[0], dataset[1]])
    # <s> the dog is b ##e ##e </s>: cat and what follows is cut away; of the other, one word has no token
    assert sample["net_input"]["src_tokens"].shape == (2, 8)
    assert dataset.lengths.tolist() == [8, 4]
    assert sample["starts"].tolist() == [[1, 2, 3, 4, 0, 0, 0], [1, 0, 2, 0, 0, 0, 0]]
    # a tag that the labels do not have is -1, as padding
    assert sample["target"].tolist() == [[0, 2, 1, 0, 0, 0, 2], [3, 3, -1, -1, -1, -1, -1]]
    assert sample["num_words"].tolist() == [7, 3]


def perfect(sample: dict) -> torch.Tensor:
    """Logits that say the gold tag of every word, if it has one."""
    return torch.nn.functional.one_hot(sample["target"].clamp(min=0), len(LABELS)).float()


@pytest.mark.parametrize("training", [True, False])
def test_words_that_are_not_read_count_as_wrong(bert: Tokenizer, training: bool):
    dataset = laid_out(bert, [LONG], positions=8, training=training)
    sample = dataset.collate([dataset[0]])
    statistics = TAGGING.statistics(perfect(sample), sample, CHUNKS)
    # right: the dog, is, bee; the last two chunks are not predicted
    assert statistics.tolist() == [4, 7, 3, 3, 5]
    values = TAGGING.metrics(statistics.numpy().astype(np.float32), CHUNKS)
    assert list(values) == ["chunk_f1", "accuracy"]
    assert values == {"chunk_f1": pytest.approx(6 / 8), "accuracy": pytest.approx(4 / 7)}


def test_words_that_are_not_read_have_no_tag(bert: Tokenizer):
    dataset = laid_out(bert, [LONG], positions=8)
    sample = dataset.collate([dataset[0]])

    def model(src_tokens, padded, head):
        return torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(*src_tokens.shape, 4)

    (prediction,) = TAGGING.predict(model, sample, CHUNKS, "tags", None)
    assert prediction == {"tags": ["O"] * 4 + [NO_TAG] * 3}
    assert TAGGING.evaluate([prediction], [LONG], CHUNKS) == {"chunk_f1": 0.0, "accuracy": 0.0}


def test_the_loss_is_the_mean_over_the_words_that_are_read(bert: Tokenizer):
    dataset = laid_out(bert, [LONG, {"words": ["who", "is"], "tags": ["O", "B-ADJP"]}], positions=8, training=True)
    sample = dataset.collate([dataset[0], dataset[1]])
    scores = torch.randn(2, 8, 4, requires_grad=True)
    logits = TAGGING.logits(lambda src_tokens, padded, head: scores, sample, "tags")
    losses = TAGGING.loss(logits, sample, 0.0)
    shares = scores.log_softmax(dim=2)
    expected = [-(shares[0, 1, 0] + shares[0, 2, 2] + shares[0, 3, 1] + shares[0, 4, 0]) / 4, -shares[1, 1, 3]]
    torch.testing.assert_close(losses, torch.stack(expected))
    losses.sum().backward()
    used = torch.zeros(2, 8, dtype=torch.bool)
    used[0, 1:5] = used[1, 1] = True
    assert (scores.grad.abs().sum(dim=2) > 0).equal(used)


def test_an_example_without_a_word_that_is_read_costs_nothing(bert: Tokenizer):
    dataset = laid_out(bert, [{"words": ["\x01"], "tags": ["O"]}], training=True)
    sample = dataset.collate([dataset[0]])
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss = TAGGING.loss(logits, sample, 0.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert logits.grad.count_nonzero() == 0
    assert TAGGING.divergence(logits, logits + 1, sample).tolist() == [0.0]


def test_divergence_is_the_mean_over_words_of_the_symmetric_kl(bert: Tokenizer):
    dataset = laid_out(bert, [LONG, {"words": ["who", "is"], "tags": ["O", "B-VP"]}], positions=8, training=True)
    sample = dataset.collate([dataset[0], dataset[1]])
    clean, noised = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    p, q = clean.softmax(dim=2), noised.softmax(dim=2)
    words = ((p - q) * (p.log() - q.log())).sum(dim=2)
    expected = torch.stack([words[0, :4].mean(), words[1, :2].mean()])
    torch.testing.assert_close(TAGGING.divergence(clean, noised, sample), expected)


@pytest.mark.parametrize("arch", ["muppet_roberta_tiny", "muppet_bart_tiny"])
@pytest.mark.parametrize("dataset", ["tags", "trees"])
def test_a_models_uniform_predictions_cost_one(data: Path, arch: str, dataset: str):
    from fairseq import options as fairseq_options
    from fairseq.models import ARCH_MODEL_REGISTRY

    task = open_task(data, dataset)
    arguments = [*options(data, data / "no_run", suite=dataset), "--arch", arch]
    args = fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), input_args=arguments)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
    for parameter in model.heads[dataset].parameters():
        torch.nn.init.zeros_(parameter)
    task.load_dataset("train")
    examples = task.datasets["train"]
    sample = examples.collater([examples[i] for i in range(6)])
    logits = TAGGING.logits(model, sample, dataset)
    classes = len(task.specs[0].labels)
    assert logits.shape == (6, sample["target"].shape[1], classes)
    criterion = argparse.Namespace(loss_scaling="log")
    weights = MuppetCriterion.weights(criterion, TAGGING.num_predictions(logits, sample), 0)
    torch.testing.assert_close(TAGGING.loss(logits, sample, 0.0) * weights, torch.ones(6), atol=1e-5, rtol=0)


def test_the_span_head_is_a_token_head_of_two_outputs():
    head = SpanHead(8, 0.1)
    assert isinstance(head, TokenHead)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "out_proj.weight": (2, 8),
        "out_proj.bias": (2,),
    }


@pytest.mark.parametrize(
    ("stream", "items", "sentence"),
    [
        ("tags", [[0, 4]], r"tags.*example 0 has tag 4, but the head of tags has 4 classes \(0 to 3\)"),
        ("tags", [[0, -2]], "example 0 has tag -2"),
        ("tags", [[0]], "example 0 has 1 tags for 2 words"),
        ("word_starts", [[0, 2]], r"word_starts.*in example 0 a word begins at token 2, but there are 2"),
    ],
)
def test_streams_that_contradict_each_other_are_named(bert: Tokenizer, stream, items, sentence):
    split = EncodedSplit(CHUNKS, [{"words": ["the", "dog"], "tags": ["B-NP", "I-NP"]}], bert)
    split._streams[stream] = [np.array(item, dtype=np.int32) for item in items]
    with pytest.raises(MuppetError, match=sentence):
        TAGGING.dataset(split, Layout(0, 1, 2, 99), training=True)


# -- chunks -------------------------------------------------------------------------------------------

TAG = st.sampled_from(["O", "B-NP", "I-NP", "B-VP", "I-VP", "I-PP", "B-A-B", "I-A-C"])
TAGGED = st.lists(st.lists(st.tuples(TAG, TAG), min_size=1, max_size=9), min_size=1, max_size=5)


@given(TAGGED)
def test_chunks_and_accuracy_equal_seqeval_and_scikit_learn(sentences):
    from seqeval.metrics import accuracy_score, f1_score
    from sklearn.metrics import accuracy_score as by_word

    gold, predicted = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
    examples = [{"words": tags, "tags": tags} for tags in gold]
    predictions = [{"tags": tags} for tags in predicted]
    values = TAGGING.evaluate(predictions, examples, CHUNKS)
    assert list(values) == ["chunk_f1", "accuracy"]
    if any(tag != "O" for tags in (*gold, *predicted) for tag in tags):
        assert values["chunk_f1"] == pytest.approx(f1_score(gold, predicted, zero_division=0))
    assert values["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    pos = TAGGING.evaluate(predictions, examples, dataclasses.replace(CHUNKS, metric="accuracy"))
    assert pos == {"accuracy": pytest.approx(by_word(*(list(chain(*side)) for side in (gold, predicted))))}


@pytest.mark.parametrize(
    ("gold", "predicted", "counts"),
    [
        # an I- after O, or after another type, begins a chunk
        ("O I-NP I-NP", "O B-NP I-NP", (1, 1, 1)),
        ("B-NP I-VP", "B-NP B-VP", (2, 2, 2)),
        # two neighbours of one type are not one long chunk
        ("B-NP B-NP", "B-NP I-NP", (0, 1, 2)),
        ("B-NP I-NP O", "B-NP I-NP I-NP", (0, 1, 1)),
        ("B-NP I-NP", "B-NP ", (0, 1, 1)),
        ("O O", "O O", (0, 0, 0)),
    ],
)
def test_chunks_by_hand(gold, predicted, counts):
    parts = tag_parts([*gold.split(" "), *predicted.split(" ")]).reshape(2, 1, -1, 2)
    assert tuple(chunk_counts(parts[0], parts[1]).tolist()) == counts


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), max_size=5))
def test_counts_while_training_equal_those_of_evaluation(bert: Tokenizer, pairs):
    if not pairs:
        return
    examples = [{"words": ["dog"] * len(p), "tags": [LABELS[gold] for gold, _ in p]} for p in pairs]
    counted = []
    for training in (True, False):
        dataset = laid_out(bert, examples, training=training)
        sample = dataset.collate([dataset[i] for i in range(len(examples))])
        logits = torch.zeros(*sample["target"].shape, len(LABELS))
        for row, p in zip(logits, pairs, strict=True):
            row[range(len(p)), [predicted for _, predicted in p]] = 1
        counted.append(TAGGING.statistics(logits, sample, CHUNKS).tolist())
    assert counted[0] == counted[1]


# -- trees --------------------------------------------------------------------------------------------

#: separators of all kinds may stand in a name, white space and brackets may not
NAME = st.text(st.sampled_from("NPSV-=+@_|/~#0"), min_size=0, max_size=4)


@st.composite
def trees(draw, names=NAME) -> Tree:
    size = draw(st.integers(1, 12))
    constituents: list[Constituent] = []

    def build(start: int, end: int) -> None:
        for name in draw(st.lists(names, max_size=3)):
            constituents.append(Constituent(name, start, end))
        if end - start > 1:
            cuts = sorted(draw(st.sets(st.integers(start + 1, end - 1), min_size=1, max_size=3)))
            for a, b in zip([start, *cuts], [*cuts, end], strict=True):
                build(a, b)

    build(0, size)
    words = draw(st.lists(st.sampled_from(["a", "(", ")", "x-y", "'"]), min_size=size, max_size=size))
    tags = draw(st.lists(st.sampled_from(["NN", "-LRB-", ",", "``", "XX"]), min_size=size, max_size=size))
    return Tree(tuple(words), tuple(tags), tuple(constituents))


def check_nesting(tree: Tree) -> None:
    """Constituents are where they open, hold words, and are within each other or apart."""
    open_ends: list[int] = []
    order = []
    for _, start, end in tree.constituents:
        assert 0 <= start < end <= len(tree.words)
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1]
        open_ends.append(end)
        order.append((start, -end))
    assert order == sorted(order)


@given(trees())
def test_a_tree_comes_back_from_its_labels_and_from_its_text(tree: Tree):
    check_nesting(tree)
    assert Tree.from_labels(tree.labels(), tree.words, tree.tags) == tree
    assert Tree.parse(tree.text()) == tree


@given(st.lists(trees(), min_size=1, max_size=3), st.data())
def test_any_sequence_of_labels_is_a_tree(given_trees: list[Tree], data: st.DataObject):
    known = [NO_TAG, "9 (A(B (C", "-9 - -", *(label for tree in given_trees for label in tree.labels())]
    labels = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=15))
    words = [f"w{i}" for i in range(len(labels))]
    tree = Tree.from_labels(labels, words)
    check_nesting(tree)
    assert tree.words == tuple(words)
    assert Tree.parse(tree.text()) == tree
    # brackets balance, and a reader of trees that is not ours sees the words in order
    from nltk import Tree as NltkTree

    if all(label for label, _, _ in tree.constituents):
        assert NltkTree.fromstring(tree.text()).leaves() == words


def test_labels_by_hand():
    tree = Tree.parse("(TOP (S (NP (DT The) (NN owl)) (VP (VB is) (ADJP (JJ old))) (. .)))")
    # "The owl" share S and NP; "owl is" S, one less; "is old" S and VP; "old ." S; an ADJP holds "old" alone
    assert tree.labels() == ["2 (NP -", "-1 (S -", "1 (VP -", "-1 (S (ADJP", "0 - -"]
    assert Tree.parse("(ROOT (NP (NNS owls)))").labels() == ["0 - (NP"]
    assert Tree.parse("(S1 (S (VP (VB go) (RB on))))").labels() == ["1 (S(VP -", "0 - -"]
    # what nobody named is left out, and what was cut away hangs below the outermost constituent
    decoded = Tree.from_labels(["3 (NP -", "-2 (S -", "1 (VP -", "", ""], list("abcde"))
    assert decoded.text() == "(TOP (S (NP (XX a) (XX b)) (VP (XX c) (XX d)) (XX e)))"


def test_deep_trees_need_no_deep_stack():
    depth = 3000
    text = "(A (a a) " * depth + "(B b)" + ")" * depth
    tree = Tree.parse(text)
    assert len(tree.constituents) == depth
    assert Tree.from_labels(tree.labels(), tree.words, tree.tags) == tree
    chain = Tree.parse("(A " * depth + "(B b)" + ")" * depth)
    assert Tree.from_labels(chain.labels(), chain.words, chain.tags) == chain
    nested: tuple = ("B", "b")
    for _ in range(depth):
        nested = ("A", nested)
    assert Tree.from_nested(nested) == chain


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("(S (NN a)", "leaves a bracket open"),
        ("(S (NN a)))", "closes a bracket that is not open"),
        ("(S (NN a)) (S (NN b))", "something follows its last bracket"),
        ("(S )", "no words"),
        ("", "no words"),
        ("dog", "where a bracket should open"),
        ("(NP the dog)", "where a bracket should open"),
    ],
)
def test_text_that_is_no_tree_is_named(text, fault):
    with pytest.raises(ValueError, match=fault):
        Tree.parse(text)


# -- brackets -----------------------------------------------------------------------------------------


def test_brackets_equal_what_evalb_counted():
    reference = json.loads((Path(__file__).parent / "data" / "evalb.json").read_text())
    total = np.zeros(3)
    for case in reference["cases"]:
        counts = bracket_counts(Tree.parse(case["gold"]), Tree.parse(case["predicted"]))
        assert counts == (case["right"], case["predicted_brackets"], case["gold_brackets"])
        total += counts
    assert 200 * total[0] / (total[1] + total[2]) == pytest.approx(reference["f1"], abs=0.01)


@pytest.mark.parametrize(
    ("gold", "predicted", "counts"),
    [
        # evalb's README, 6.3: constituents that dominate nothing but traces are not there
        (
            "(S (NP (PRP he)) (VP (VBD reported) (SBAR (-NONE- 0) (S (-NONE- *T*-1)))) (. .))",
            "(S (NP (PRP he)) (VP (VBD reported) (X (-NONE- 0) (Y (-NONE- *T*-1)))) (. .))",
            (3, 3, 3),
        ),
        # 7.2: function tags
        ("(S (NP-SBJ (PRP he)) (NP=2 (NN x)))", "(S (NP (PRP he)) (NP-TMP (NN x)))", (3, 3, 3)),
        # 7.5: of n constituents with the same span and label in one and m in the other, the lesser number is right
        ("(NP (NP (DT the) (NN man)))", "(NP (NP (NP (DT the) (NN man))))", (2, 3, 2)),
        ("(NP (NP (NP (DT the) (NN man))))", "(NP (NP (DT the) (NN man)))", (2, 2, 3)),
        # punctuation is not there when spans are compared
        ("(S (NP (NN a) (, ,)) (VP (VB b)))", "(S (NP (NN a)) (, ,) (VP (VB b)))", (3, 3, 3)),
        # its own bracket neither, whatever it is called
        ("(S (NN a) (PRN (: -)) (NN b))", "(S (NN a) (: -) (NN b))", (1, 1, 1)),
        ("(S (PRT (RP up)))", "(S (ADVP (RP up)))", (2, 2, 2)),
        ("(TOP (S (NN a)))", "(TOP (ROOT (S1 (S (NN a)))))", (1, 1, 1)),
        ("(S (NP (NN a) (NN b)) (NN c))", "(S (NN a) (NP (NN b) (NN c)))", (1, 2, 2)),
        # nothing but punctuation
        ("(X (. .))", "(Y (. .))", (0, 0, 0)),
        # the predicted tree's own parts of speech do not matter
        ("(S (NP (NN a)) (. .))", "(S (NP (XX a)) (XX .))", (2, 2, 2)),
    ],
)
def test_brackets_by_hand(gold, predicted, counts):
    assert bracket_counts(Tree.parse(gold), Tree.parse(predicted)) == counts


def test_trees_over_different_words_are_not_compared():
    with pytest.raises(ValueError, match="has 1 words, the predicted one 2"):
        bracket_counts(Tree.parse("(A a)"), Tree.parse("(S (A a) (B b))"))


def test_statistics_of_trees_equal_evaluation(bert: Tokenizer):
    tree = Tree.parse("(TOP (S (NP (DT the) (NN dog)) (VP (VB is) (NP (NN cat))) (. .)))")
    example = {"words": list(tree.words), "tags": tree.labels(), "tree": tree.text()}
    spec = DatasetSpec("trees", "tagging", "bracket_f1", tuple(sorted(set(tree.labels()))))
    counted = {}
    for training in (True, False):
        dataset = laid_out(bert, [example], training=training, spec=spec)
        sample = dataset.collate([dataset[0]])
        logits = torch.nn.functional.one_hot(sample["target"], len(spec.labels)).float()
        counted[training] = TAGGING.statistics(logits, sample, spec).tolist()
    assert counted == {True: [5, 5, 0, 0, 0], False: [5, 5, 4, 4, 4]}
    assert TAGGING.metrics(np.array(counted[True]), spec) == {"accuracy": 1.0}
    assert TAGGING.metrics(np.array(counted[False]), spec) == {"bracket_f1": 1.0, "accuracy": 1.0}
    wrong = {"tags": ["0 - -"] * 5}
    assert TAGGING.evaluate([wrong], [example], spec) == {"bracket_f1": 0.0, "accuracy": pytest.approx(1 / 5)}
    with pytest.raises(MuppetError, match="trees: an example has no tree"):
        TAGGING.evaluate([wrong], [{key: example[key] for key in ("words", "tags")}], spec)


# -- preprocessing ------------------------------------------------------------------------------------


def test_labels_are_those_of_train_and_unseen_ones_count_as_wrong(data: Path, bert: Tokenizer, tmp_path: Path):
    out = tmp_path / "data-bin"
    out.mkdir()
    train = [{"id": "1", "words": ["the", "dog"], "tags": ["DT", "NN"]}]
    valid = [{"id": "2", "words": ["the", "cat"], "tags": ["DT", "NNP"]}]
    splits = {"train": Split([Examples(train)]), "valid": Split([Examples(valid)])}
    meta = binarize(toy_entry("pos", "tagging", (), "accuracy"), splits, bert, out)
    assert meta["labels"] == ["DT", "NN"]
    spec = DatasetSpec("pos", "tagging", "accuracy", ("DT", "NN"))
    split = BinarizedSplit(out, spec, "valid", dictionary_sha256(data / "dict.txt"))
    dataset = TAGGING.dataset(split, Layout(0, 1, 2, 99), training=False)
    sample = dataset.collate([dataset[0]])
    assert sample["target"].tolist() == [[0, -1]]
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert TAGGING.statistics(logits, sample, spec).tolist() == [1, 2]
    assert TAGGING.loss(logits, sample, 0.0).isfinite().all()


@pytest.mark.parametrize("name", ["ptb_chunking", "ptb_pos", "ptb_parsing"])
@pytest.mark.parametrize("packed", [False, True])
def test_original_files_come_back(name: str, packed: bool, gpt2: Tokenizer, tmp_path: Path):
    entry, fixture = CATALOG[name], json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    for path, content in fixture["original"].items():
        file = tmp_path / "raw" / (f"{path}.gz" if packed else path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    if name == "ptb_chunking":  # of a few rows, the real number to hold out would be all
        entry = dataclasses.replace(entry, splits=dataclasses.replace(entry.splits, valid=1))
    out = tmp_path / "data-bin"
    fetch = Fetch(tmp_path / "cache", tmp_path / "raw")
    ready, failures = prepare([entry], gpt2, out, fetch, max_bad_share=0.2)
    assert not failures
    (meta,) = ready
    assert meta["labels"] == fixture["labels"]
    assert {name: split["dropped"] for name, split in meta["splits"].items() if split["dropped"]} == fixture.get(
        "dropped", {}
    )
    spec = DatasetSpec(name, "tagging", entry.metric, tuple(meta["labels"]))
    found = {}
    for split_name in meta["splits"]:
        split = BinarizedSplit(out, spec, split_name, dictionary_sha256(out / "dict.txt"))
        dataset = TAGGING.dataset(split, Layout(0, 1, 2, 60_000), training=split_name == "train")
        found[split_name] = [read_back(dataset, i, gpt2) for i in range(len(dataset))]
        if split_name != "train":
            raw = [{k: v for k, v in split.raw(i).items() if k != "id"} for i in range(len(dataset))]
            # an unseen tag is lost in the stream, not in the example that is judged
            for streamed, example in zip(found[split_name], raw, strict=True):
                known = [tag if tag in meta["labels"] else None for tag in example["tags"]]
                assert streamed == {"words": example["words"], "tags": known}
            found[split_name] = raw
    expected = fixture["expected"]
    assert {split: found[split] for split in expected if split != "train"} == {
        split: examples for split, examples in expected.items() if split != "train"
    }
    if name == "ptb_chunking":
        assert [len(found[split]) for split in ("train", "valid")] == [3, 1]
        assert sorted(map(str, found["train"] + found["valid"])) == sorted(map(str, fixture["train_and_valid"]))
    else:
        assert found["train"] == [{key: e[key] for key in ("words", "tags")} for e in expected["train"]]


def read_back(dataset, index: int, tokenizer: Tokenizer) -> dict:
    """An example from its streams alone."""
    ids, starts = dataset.input0[index][:-1], dataset.word_starts[index].tolist()
    words = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    labels = dataset.data.spec.labels
    return {"words": words, "tags": [labels[tag] if tag >= 0 else None for tag in dataset.tags[index]]}


# -- training, evaluation, the hub --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on both toy datasets, with R3F."""
    save_dir = tmp_path_factory.mktemp("tagger")
    more = ("--criterion", "muppet_r3f", "--lr", "0.003", "--max-epoch", "35", "--update-freq", "1")
    more += ("--save-interval", "35", "--validate-interval", "35", "--dropout", "0", "--attention-dropout", "0")
    trained(options(data, save_dir, *more, suite="tags,trees"), timeout=600)
    return save_dir


def test_it_is_learnt_and_logged(tagger: Path):
    (valid,) = logged(tagger, "valid")
    assert float(valid["valid_tags_chunk_f1"]) > 0.9
    assert float(valid["valid_trees_bracket_f1"]) > 0.9
    # the main metric of both
    both = [float(valid[f"valid_{name}"]) for name in ("tags_chunk_f1", "trees_bracket_f1")]
    assert float(valid["valid_score"]) == pytest.approx(sum(both) / 2, abs=0.01)
    line = logged(tagger, "train")[-1]
    assert float(line["train_tags_chunk_f1"]) > 0.9
    assert float(line["train_trees_accuracy"]) > 0.9
    assert "train_trees_bracket_f1" not in line
    assert float(line["train_divergence"]) >= 0
    losses = [float(line["train_loss"]) for line in logged(tagger, "train")]
    assert losses[-1] < 0.2 * losses[0]


def evaluated(data: Path, checkpoint: Path, predictions: Path) -> dict[str, dict]:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    words = (checkpoint, data, "--predictions", predictions, "--device", "cpu")
    results = evaluate.evaluate(parser.parse_args(list(map(str, words))))["results"]
    return {result["dataset"]: result["metrics"] for result in results}


def test_evaluation_and_the_hub_agree_with_training(data: Path, tagger: Path, tmp_path: Path):
    checkpoint = tagger / "checkpoint_last.pt"
    metrics = evaluated(data, checkpoint, tmp_path)
    (valid,) = logged(tagger, "valid")
    for name, metric in (("tags", "chunk_f1"), ("trees", "bracket_f1")):
        assert next(iter(metrics[name])) == metric
        for key, value in metrics[name].items():
            assert value == pytest.approx(float(valid[f"valid_{name}_{key}"]), abs=6e-4)
    hub = MuppetHub(TrainedModel.load(checkpoint, data / "dict.txt"), Tokenizer.load(data / "tokenizer"))
    for name in ("tags", "trees"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.valid.jsonl").read_text().splitlines()]
        spec = hub.datasets[name]
        split = BinarizedSplit(data, spec, "valid", dictionary_sha256(data / "dict.txt"))
        sentences = [split.raw(i)["words"] for i in range(len(lines))]
        answers = hub.tag(name, sentences)
        assert [{k: v for k, v in line.items() if k not in ("id", "gold")} for line in lines] == answers
        assert hub.tag(name, sentences[0]) == answers[0]
    assert list(Tree.parse(answers[0]["tree"]).words) == sentences[0]


def test_a_release_tags_and_refuses_what_it_cannot_tag(data: Path, tagger: Path, tmp_path: Path):
    parser = argparse.ArgumentParser()
    release.add_arguments(parser)
    words = (tagger / "checkpoint_last.pt", tmp_path / "release", "--data", data)
    release.run(parser.parse_args(list(map(str, words))))
    assert 'hub.tag("tags", ["some", "words"])' in (tmp_path / "release" / "README.md").read_text()
    hub = MuppetHub.load(tmp_path / "release")
    assert hub.tag("tags", ["the", "owl", "is"]) == {"tags": ["B-NP", "I-NP", "B-VP"]}
    long = ["dog"] * 40
    with pytest.raises(MuppetError, match="text 1 of 1 has 42 tokens, the model reads 32"):
        hub.tag("tags", long)
    assert hub.tag("tags", long, truncate=True)["tags"][29:32] == ["B-NP", NO_TAG, NO_TAG]
    with pytest.raises(MuppetError, match="give a list of words"):
        hub.tag("tags", "the dog")
    with pytest.raises(MuppetError, match="question 2 of 2 cannot be used: it has no words"):
        hub.tag("tags", [["dog"], []])
    with pytest.raises(MuppetError, match="'animals' is unknown to the model: for tagging it has tags, trees"):
        hub.tag("animals", ["dog"])
    assert hub.tag("tags", []) == []
