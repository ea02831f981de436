"""Users' own datasets: one YAML file, rows in any format, the same data-bin."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preprocess.__main__ as command
from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import DatasetSpec, read_dataset_json
from preprocess.cells import Answer, Answers, Cell, Choices, ClassName, Items
from preprocess.convert import convert
from preprocess.download import Fetch
from preprocess.entry import BadRow, Entry, HeldOut, LeaveOut
from preprocess.own import read_own
from preprocess.prepare import prepare
from tests.toy_data import write_bert_tokenizer
from tests.toy_suite import logged, options, trained

#: a definition of each family, and rows as JSON has them
DEFINITIONS = """\
reviews:
  family: classification
  fields: {inputs: [title, body], label: stars}
  labels: {1: bad, 2: bad, 5: good}
flags: {family: classification, fields: {inputs: title, label: good}, labels: {false: no, true: yes}, folder: reviews}
prices:
  family: regression
  fields: {inputs: title, label: price}
  folder: reviews
quiz:
  family: commonsense
  fields: {context: [passage, question], choices: options, answer: key}
exam:
  family: commonsense
  fields: {context: question, choices: [a, b, c], answer: right}
  folder: quiz
search:
  family: mrc
  fields: {question: question, passage: passage, answers: gold}
  metric: squad_v2
news: {family: summarization, fields: {source: [title, text], target: summary}}
names: {family: tagging, fields: {words: words, tags: tags}, labels: [O, PER]}
chunks: {family: tagging, fields: {words: words, tags: chunks}, folder: names}
"""
ROWS: dict[str, list[dict[str, Any]]] = {
    "reviews": [
        {"title": f'the "dog", {i}', "body": "it ran\nand ran" if i else None, "stars": (1, 2, 5)[i % 3]}
        | {"good": i % 3 == 2, "price": i / 4}
        for i in range(9)
    ],
    "quiz": [
        {"question": f"who {i}", "passage": "the dog", "options": ["dog", "cat", f"the {i}"][: 2 + i % 2]}
        | {"key": i % 2, "a": "a dog", "b": "it", "c": "they" if i % 2 else None, "right": "ABC"[i % 2]}
        for i in range(6)
    ],
    "search": [
        {"question": "who ran", "passage": "the dog ran. a cat ran.", "gold": gold}
        for gold in (
            [{"text": "dog", "start": 4}],
            [{"text": "cat", "start": 15}, {"text": "a cat", "start": 13}],
            [],
        )
    ],
    "news": [{"title": f"t {i}", "text": "the dog ran. " * i + "who?", "summary": f"the dog {i}"} for i in range(4)],
    "names": [
        {"words": ["the", "dog,", f"{i}"], "tags": [0, i % 2, 0], "chunks": ["O", "B-NP", "O"]} for i in range(4)
    ],
}


def in_a_cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def table(rows: list[dict[str, Any]], **dialect: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **dialect)
    writer.writerow(rows[0])
    writer.writerows([in_a_cell(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": lines,
    "csv": table,
    "tsv": lambda rows: table(rows, delimiter="\t"),
    "parquet": parquet,
    "csv.gz": lambda rows: gzip.compress(b"\xef\xbb\xbf" + table(rows)),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "toy"))


def write(
    folder: Path, form: str = "jsonl", text: str = DEFINITIONS, splits: tuple[str, ...] = ("train", "valid")
) -> Path:
    """Write the rows of all datasets, the same in each split, and return the YAML file."""
    for name, rows in ROWS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split in splits:
            (folder / name / f"{split}.{form}").write_bytes(FORMATS[form](rows))
    file = folder / "own.yaml"
    file.write_text(text)
    return file


def made(entry: Entry) -> dict[str, list[dict[str, Any]]]:
    """The examples of an entry's splits, without their ids."""
    splits = convert(entry, Fetch(Path("none")), max_bad_share=0.0)
    examples = {name: list(split.examples) for name, split in splits.items()}
    return {name: [{k: v for k, v in e.items() if k != "id"} for e in split] for name, split in examples.items()}


def streams(folder: Path) -> dict[str, bytes]:
    """A dataset's files but the raw examples, whose ids name the file they come from."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "raw" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "dataset.json"}


@pytest.fixture(scope="module")
def from_lines(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The file of own datasets with rows in JSON lines, and their data-bin."""
    folder = tmp_path_factory.mktemp("own")
    file = write(folder)
    arguments = ["--own", str(file), "--tokenizer", str(tokenizer.folder), "--out", str(folder / "data-bin")]
    assert command.main(["prepare", *arguments]) == 0
    return file, folder / "data-bin"


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "jsonl"])
def test_every_format_gives_the_same_data_bin(
    form: str, from_lines: tuple[Path, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    entries = read_own(write(tmp_path, form))
    metas, failures = prepare(list(entries.values()), tokenizer, tmp_path / "data-bin", Fetch(tmp_path))
    assert not failures
    assert all(not split["dropped"] for meta in metas for split in meta["splits"].values())
    _, out = from_lines
    expected = read_own(from_lines[0])
    for name in entries:
        assert made(entries[name]) == made(expected[name])
        assert streams(tmp_path / "data-bin" / name) == streams(out / name) != {}


def test_examples(from_lines: tuple[Path, Path]) -> None:
    examples = {name: made(entry)["valid"] for name, entry in read_own(from_lines[0]).items()}
    second = {name: split[1] for name, split in examples.items()}
    body = "it ran\nand ran"
    assert second == {
        "reviews": {"inputs": ['the "dog", 1', body], "label": "bad"},
        "flags": {"inputs": ['the "dog", 1'], "label": "no"},
        "prices": {"inputs": ['the "dog", 1'], "label": 0.25},
        "quiz": {"context": "the dog who 1", "choices": ["dog", "cat", "the 1"], "answer": 1},
        "exam": {"context": "who 1", "choices": ["a dog", "it", "they"], "answer": 1},
        "search": {
            "question": "who ran",
            "passage": "the dog ran. a cat ran.",
            "answers": [{"text": "cat", "start": 15}, {"text": "a cat", "start": 13}],
        },
        "news": {"source": "t 1 the dog ran. who?", "target": "the dog 1"},
        "names": {"words": ["the", "dog,", "1"], "tags": ["O", "PER", "O"]},
        "chunks": {"words": ["the", "dog,", "1"], "tags": ["O", "B-NP", "O"]},
    }
    assert examples["search"][2]["answers"] == []


def test_data_bin(from_lines: tuple[Path, Path], tokenizer: Tokenizer) -> None:
    _, out = from_lines
    metas = {name: read_dataset_json(out / name) for name in ("reviews", "chunks", "search")}
    assert metas["reviews"]["labels"] == ["bad", "good"]
    assert metas["reviews"]["source"] == "own files in reviews"
    assert metas["chunks"]["labels"] == ["B-NP", "O"]
    assert metas["search"]["metric"] == "squad_v2"
    spec = DatasetSpec("reviews", "classification", "accuracy", ("bad", "good"), 2)
    split = BinarizedSplit(out, spec, "train", dictionary_sha256(out / "dict.txt"))
    assert split.labels()[:].tolist() == [0, 0, 1] * 3
    assert tokenizer.decode(split.tokens("input1")[1][:-1]) == "it ran and ran"


def test_training(from_lines: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = from_lines
    trained(options(out, tmp_path / "run", "--max-update", "2", suite="reviews,quiz,search"))
    assert logged(tmp_path / "run", "valid")


class TestFiles:
    def test_several_files_of_a_split(self, tmp_path: Path) -> None:
        file = write(tmp_path)
        (tmp_path / "news" / "train.jsonl").unlink()
        for number in (2, 1):
            rows = [{"title": "", "text": f"the dog {number}", "summary": "it"}]
            (tmp_path / "news" / f"train-{number}.parquet").write_bytes(parquet(rows))
        sources = [example["source"].strip() for example in made(read_own(file)["news"])["train"]]
        assert sources == ["the dog 1", "the dog 2"]

    def test_a_split_by_itself_is_not_joined_with_others(self, tmp_path: Path) -> None:
        file = write(tmp_path)
        (tmp_path / "news" / "train-old.jsonl").write_bytes(lines(ROWS["news"]))
        (tmp_path / "news" / "trains.jsonl").write_text("nothing")
        assert len(made(read_own(file)["news"])["train"]) == len(ROWS["news"])

    def test_a_test_split_is_taken_where_there_is_one(self, tmp_path: Path) -> None:
        assert read_own(write(tmp_path))["news"].split_names == ["train", "valid"]
        assert read_own(write(tmp_path, splits=("test",)))["news"].split_names == ["train", "valid", "test"]

    def test_splits_have_other_names(self, tmp_path: Path) -> None:
        text = "news:\n  family: summarization\n  fields: {source: text, target: summary}\n"
        text += "  splits: {train: part.1, valid: part.2}\n"
        file = write(tmp_path, text=text, splits=("part.1", "part.2"))
        assert {name: len(split) for name, split in made(read_own(file)["news"]).items()} == {"train": 4, "valid": 4}

    def test_holding_out(self, tmp_path: Path) -> None:
        text = "quiz:\n  family: commonsense\n  fields: {context: question, choices: options, answer: key}\n"
        text += "  valid: 2\n  group: question\n"
        file = write(tmp_path, text=text, splits=("train", "test"))
        entry = read_own(file)["quiz"]
        assert (entry.splits, entry.group) == (HeldOut(2, others={"test": "test"}), Cell("question"))
        assert {name: len(split) for name, split in made(entry).items()} == {"train": 4, "valid": 2, "test": 6}

    def test_groups_of_splits_that_are_there(self, tmp_path: Path) -> None:
        text = "quiz:\n  family: commonsense\n  fields: {context: question, choices: options, answer: key}\n"
        examples = made(read_own(write(tmp_path, text=text + "  group: question\n"))["quiz"])["valid"]
        contexts = [example["context"] for example in examples]
        assert len({(example["context"], example["group"]) for example in examples}) == len(set(contexts)) > 1

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({}, r"there is no file .*/d/train\.jsonl, nor one with \.csv, \.tsv or \.parquet"),
            ({"train.csv": "a,b\n1,2\n", "train.tsv": ""}, "'train' in several forms, as train.csv and train.tsv"),
            ({"train.csv": 'a,b\n1,2\n"x"y,3\n'}, "d/train.csv:row 2: it is no CSV"),
            ({"train.csv": "a,b\n1,2\n1,2,3\n"}, "d/train.csv:row 2: it has 3 columns instead of 2"),
            ({"train.tsv": "a\tb\n1\n"}, "d/train.tsv:row 1: it has 1 columns instead of 2"),
            ({"train.jsonl": '{"a": "x", "b": "y"}\n[]\n'}, "d/train.jsonl:2: it is no JSON object"),
            ({"train.parquet": "PAR1"}, "d/train.parquet is damaged after row 0"),
            ({"train.csv.gz": "a,b\n"}, "d/train.csv.gz cannot be read"),
        ],
    )
    def test_faults(self, files: dict[str, str], said: str, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        for name, content in files.items():
            (tmp_path / "d" / name).write_text(content)
        (tmp_path / "own.yaml").write_text("d: {family: summarization, fields: {source: a, target: b}}\n")
        with pytest.raises(MuppetError, match=said):
            made(read_own(tmp_path / "own.yaml")["d"])

    def test_a_long_cell(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        for split in ("train", "valid"):
            (tmp_path / "d" / f"{split}.csv").write_text(f"a,b\n{'dog ' * 50_000},it\n")
        (tmp_path / "own.yaml").write_text("d: {family: summarization, fields: {source: a, target: b}}\n")
        assert len(made(read_own(tmp_path / "own.yaml")["d"])["train"][0]["source"]) == 200_000


class TestFingerprint:
    def test_any_change_makes_another_one(self, tmp_path: Path) -> None:
        file, seen = write(tmp_path), set()

        def fingerprint() -> str:
            # as a process of its own computes it
            return pickle.loads(pickle.dumps(read_own(file)["reviews"])).sha256()

        assert fingerprint() == fingerprint()
        seen.add(fingerprint())
        for old, new in (("5: good", "5: great"), ("[title, body]", "[body, title]"), ("stars}", "price}")):
            file.write_text(DEFINITIONS.replace(old, new))
            seen.add(fingerprint())
        file.write_text(DEFINITIONS)
        os.utime(tmp_path / "reviews" / "valid.jsonl", ns=(0, 0))
        seen.add(fingerprint())
        (tmp_path / "reviews" / "train.jsonl").write_bytes(lines(ROWS["reviews"][1:]))
        seen.add(fingerprint())
        assert len(seen) == 6

    def test_where_the_folder_lies_makes_no_difference(self, tmp_path: Path) -> None:
        first = read_own(write(tmp_path / "one"))["news"].sha256()
        (tmp_path / "one").rename(tmp_path / "two")
        assert read_own(tmp_path / "two" / "own.yaml")["news"].sha256() == first

    def test_changed_files_are_prepared_again(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        file, counts = write(tmp_path), []
        for rows in (ROWS["news"], ROWS["news"], ROWS["news"][:2]):
            train = tmp_path / "news" / "train.jsonl"
            if train.read_bytes() != lines(rows):
                train.write_bytes(lines(rows))
            (meta,), _ = prepare([read_own(file)["news"]], tokenizer, tmp_path / "out", Fetch(tmp_path))
            written = (tmp_path / "out" / "news" / "dataset.json").stat().st_mtime_ns
            counts.append((meta["splits"]["train"]["examples"], written))
        assert [count for count, _ in counts] == [4, 4, 2]
        assert counts[0] == counts[1] != counts[2]


class TestCells:
    """How one thing may be written."""

    @given(
        st.lists(st.sampled_from(["dog", "cat", "A", "b", "0", "1", "2", "3.0"]), min_size=2, max_size=5, unique=True),
        st.data(),
    )
    def test_an_answer_is_right_or_refused(self, choices: list[str], data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(choices) - 1))
        written = {"number": number, "letter": "ABCDE"[number], "text": choices[number], "number from 1": number + 1}
        for way, answer in written.items():
            row = {"choices": choices, "answer": answer}
            assert Answer("answer", Choices(("choices",)), way)(row) == number
            in_csv = {"choices": json.dumps(choices), "answer": str(answer)}
            assert Answer("answer", Choices(("choices",)), way)(in_csv) == number
            if way != "number from 1":
                try:
                    assert Answer("answer", Choices(("choices",)))(row) == number
                except BadRow as error:
                    assert "say which: 'answer_is'" in str(error)  # noqa: PT017
                    assert not set(choices).isdisjoint({*"012", "A", "b", "3.0"})

    @pytest.mark.parametrize("answer", ["dogs", "c", 2, -1, "", None, ["dog"]])
    def test_an_answer_that_is_no_choice(self, answer: Any) -> None:
        with pytest.raises(BadRow):
            Answer("answer", Choices(("choices",)))({"choices": ["dog", "cat"], "answer": answer})

    def test_an_answer_that_occurs_twice(self) -> None:
        with pytest.raises(LeaveOut, match="twice"):
            Answer("answer", Choices(("choices",)))({"choices": ["dog", "cat", "dog"], "answer": 2})

    @pytest.mark.parametrize(
        "gold",
        [
            {"text": ["dog", "cat"], "answer_start": [4, 13]},
            [{"text": "dog", "start": 4}, {"text": "cat", "start": 13}],
            [{"text": "dog", "answer_start": 4}, {"text": "cat", "answer_start": 13}],
            ["dog", "cat"],
            '["dog", "cat"]',
            '{"text": ["dog", "cat"], "answer_start": [4, 13]}',
        ],
    )
    def test_answers(self, gold: Any) -> None:
        row = {"gold": gold, "passage": "the dog or a cat"}
        assert Answers("gold", "passage", False)(row) == [{"text": "dog", "start": 4}, {"text": "cat", "start": 13}]

    @pytest.mark.parametrize(("gold", "start"), [("[1]", 8), ("1980", 3), (1980, 3), ("[1] {", 8)])
    def test_an_answer_that_looks_like_json(self, gold: Any, start: int) -> None:
        row = {"gold": gold, "passage": "in 1980 [1] {"}
        assert Answers("gold", "passage", False)(row) == [{"text": str(gold), "start": start}]

    @pytest.mark.parametrize("gold", ["", None, [], "[]", {"text": [], "answer_start": []}])
    def test_no_answer(self, gold: Any) -> None:
        row = {"gold": gold, "passage": "the dog"}
        assert Answers("gold", "passage", True)(row) == []
        with pytest.raises(BadRow, match="metric: squad_v2"):
            Answers("gold", "passage", False)(row)

    @pytest.mark.parametrize("cell", [["a", "b"], '["a", "b"]', " a  b "])
    def test_words(self, cell: Any) -> None:
        assert Items("words", spaced=True)({"words": cell}) == ["a", "b"]

    @pytest.mark.parametrize("cell", ["['a', 'b']", "[a] b", 3, None, '{"a": 1}'])
    def test_what_is_no_list(self, cell: Any) -> None:
        with pytest.raises(BadRow, match="is no list"):
            Items("words")({"words": cell})

    def test_an_empty_choice_before_others(self) -> None:
        with pytest.raises(BadRow, match="one of its choices is empty"):
            Choices(("a", "b", "c"))({"a": "dog", "b": "", "c": "cat"})

    @pytest.mark.parametrize("raw", [1, "1", 1.0, "1.0", " 1", True, "True", "TRUE", "true"])
    def test_a_class(self, raw: Any) -> None:
        assert ClassName("label", {"1": "yes", "true": "yes"})({"label": raw}) == "yes"


NEWS = "news: {family: summarization, fields: {source: text, target: summary}}"
PAIRS = "a:\n  family: classification\n  fields: {inputs: t, label: l}\n"


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("", None, "own datasets are a mapping of names to definitions"),
            ("- news", None, "own datasets are a mapping of names to definitions"),
            ("a: [", 1, "this is no YAML"),
            (f"{NEWS}\n{NEWS}", 2, "'news' is given twice"),
            ("a/b: {}", 1, "'a/b' is no dataset name"),
            ("rte: {}", 1, "the name 'rte' is taken"),
            ("tokenizer: {}", 1, "the name 'tokenizer' is taken"),
            ("news: [a]", 1, "a dataset's definition is a mapping with 'family' and 'fields'"),
            ("a: {fields: {}}", 1, "'a' has no 'family'"),
            ("a: {family: mrc}", 1, "'fields' has no 'question'; the family mrc has question, passage, answers"),
            ("a:\n  famly: mrc", 2, "unknown key 'famly' (did you mean 'family'?)"),
            ("a:\n  family: clasification", 2, "unknown family 'clasification' (did you mean 'classification'?)"),
            ("a:\n  family: [mrc, mrc]", 2, "'family' takes a word"),
            ("a:\n  family: mrc\n  fields: passage", 3, "'fields' takes a mapping"),
            (
                "a:\n  family: mrc\n  fields:\n    question: q\n    pasage: p",
                5,
                "unknown key 'pasage' (did you mean 'passage'?); known are question, passage, answers",
            ),
            ("a:\n  family: mrc\n  fields: {passage: [p, q]}", 3, "'passage' takes a word"),
            ("a:\n  family: regression\n  fields: {inputs: [a, b, c]}", 3, "'inputs' takes a word, or a list of two"),
            ("a:\n  family: regression\n  fields: {inputs: t}", 3, "'fields' has no 'label'"),
            (PAIRS, 1, "'a' has no 'labels', the classes in order: [no, yes]"),
            (PAIRS + "  labels: [no, no]", 4, "'labels' has 'no' twice"),
            (PAIRS + "  labels: {1: a, 1.0: b}", 4, "'labels' has '1' twice"),
            (PAIRS + "  labels: yes", 4, "'labels' takes two classes or more"),
            (PAIRS + "  labels: {}", 4, "'labels' takes a mapping"),
            (PAIRS + "  labels: [no, [yes]]", 4, "'labels' takes a list of words"),
            (PAIRS + "  labels: [no, yes]\n  metric: acc", 5, "unknown metric 'acc' (did you mean 'accuracy'?)"),
            (PAIRS + "  labels: [no, yes]\n  metric: multirc", 5, "unknown metric 'multirc'"),
            (PAIRS + "  labels: [no, yes]\n  answer_is: text", 5, "'answer_is' is for the family commonsense"),
            (f"{NEWS[:-1]},\n  labels: [a, b]}}", 2, "datasets of the family summarization have no 'labels'"),
            (f"{NEWS[:-1]},\n  valid: 10%}}", 2, "'valid' takes a share below 1, or a number of examples"),
            (f"{NEWS[:-1]},\n  valid: 0.0}}", 2, "'valid' takes a share below 1, or a number of examples"),
            (f"{NEWS[:-1]},\n  splits: {{valid: v}}}}", 2, "'splits' has no 'train'"),
            (f"{NEWS[:-1]},\n  splits: {{train: t, a/b: v}}}}", 2, "'a/b' is no name of a split"),
            (f"{NEWS[:-1]},\n  splits: {{train: t, valid: v}}, valid: 3}}", 2, "there are files of 'valid' already"),
            (
                "a:\n  family: commonsense\n  fields: {context: c, choices: d, answer: e}\n  answer_is: letters",
                4,
                "unknown answer_is 'letters' (did you mean 'letter'?)",
            ),
        ],
    )
    def test_a_file_that_is_wrong(self, text: str, line: int | None, said: str, tmp_path: Path) -> None:
        file = tmp_path / "own.yaml"
        file.write_text(text)
        with pytest.raises(MuppetError) as error:
            read_own(file)
        assert str(error.value).startswith(f"{file}, line {line}: {said}" if line else f"{file}: {said}")

    def test_labels_that_yaml_reads_as_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(PAIRS + "  labels: [no, 1e3, null, 0x1]\n")
        assert read_own(tmp_path / "own.yaml")["a"].label_names == ["no", "1e3", "null", "0x1"]

    @pytest.mark.parametrize(
        ("labels", "raw", "said"),
        [
            ("[no, yes]", "1", "yes"),
            ("[no, yes]", "yes", "yes"),
            ("[no, yes]", "2", None),
            ("[1, 2]", "1", "1"),
            ("[1, 2]", "0", None),
            ("{0: no, 1: yes}", "yes", "yes"),
        ],
    )
    def test_class_numbers(self, labels: str, raw: str, said: str | None, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(PAIRS + f"  labels: {labels}\n")
        entry = read_own(tmp_path / "own.yaml")["a"]
        label = entry.reader()({"t": "the dog", "l": raw}, "id")["label"]
        assert (label if label in entry.label_names else None) == said


class TestCommand:
    def test_beside_the_catalog(self, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = write(tmp_path)
        assert command.main(["list", "--own", str(file), "--family", "summarization"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [row[1] for row in rows if row[0] in ("news", "xsum")] == ["summarization"] * 2
        (tmp_path / "suite.yaml").write_text("- news\n- name: quiz\n  examples: 3\n")
        where = ["--own", str(file), "--tokenizer", str(tokenizer.folder), "--out", str(tmp_path / "out")]
        for which in (["--suite", str(tmp_path / "suite.yaml")], ["--datasets", "news,quiz"]):
            assert command.main(["prepare", *where, *which]) == 0
            made = {path.parent.name for path in (tmp_path / "out").glob("*/dataset.json")}
            assert made == {"news", "quiz"}
        capsys.readouterr()
        assert command.main(["prepare", *where, "--datasets", "nws"]) == 1
        assert "unknown dataset 'nws' (did you mean 'news'?)" in capsys.readouterr().err

    def test_nothing_to_prepare(self, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["prepare", "--tokenizer", str(tokenizer.folder)]) == 1
        assert "name datasets with --datasets, --suite, or a file" in capsys.readouterr().err
