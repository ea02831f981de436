"""Tasks of the package tasksource, on mirrors of the hub's conversion to Parquet."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import preprocess.__main__ as command
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.spec import read_dataset_json
from preprocess.catalog import lookup
from preprocess.convert import convert
from preprocess.download import Fetch
from preprocess.entry import Entry
from preprocess.prepare import prepare
from tests.toy_data import write_bert_tokenizer

needs_tasksource = pytest.mark.skipif(
    importlib.util.find_spec("tasksource") is None, reason="the package tasksource is not installed"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "toy"))


def mirror(raw: Path, folder: str, features: dict[str, Any], **splits: list[dict[str, Any]]) -> None:
    """Write rows as the hub's conversion to Parquet lays out a configuration: ``owner/name/config``."""
    import datasets

    for split, rows in splits.items():
        file = raw / folder / split / "0000.parquet"
        file.parent.mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(file))


def text() -> Any:
    import datasets

    return datasets.Value("string")


def classes(*names: str) -> Any:
    import datasets

    return datasets.ClassLabel(names=list(names))


def made(name: str, raw: Path, tmp_path: Path) -> tuple[Entry, dict[str, list[dict[str, Any]]]]:
    """The completed entry and the examples of its splits, without their ids."""
    fetch = Fetch(tmp_path / "cache", raw)
    entry = lookup(name).completed(fetch)
    splits = convert(entry, fetch, max_bad_share=0.0)
    examples = {split: [dict(example) for example in part.examples] for split, part in splits.items()}
    for split in examples.values():
        for example in split:
            del example["id"]
    return entry, examples


def rte(count: int, label: int | None = None) -> list[dict[str, Any]]:
    return [
        {"sentence1": f"the dog ran {i}", "sentence2": f"who ran {i}", "label": i % 2 if label is None else label}
        for i in range(count)
    ]


def write_rte(raw: Path) -> None:
    features = {"sentence1": text(), "sentence2": text(), "label": classes("entailment", "not_entailment")}
    mirror(raw, "nyu-mll/glue/rte", features, train=rte(20), validation=rte(8), test=rte(4, label=-1))


@needs_tasksource
class TestTasks:
    def test_classification(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        write_rte(tmp_path / "raw")
        options = ["--raw", str(tmp_path / "raw"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
        options += ["--tokenizer", str(tokenizer.folder), "--datasets", "tasksource-glue_rte", "--jobs", "2"]
        assert command.main(["prepare", *options]) == 0
        meta = read_dataset_json(tmp_path / "out" / "tasksource-glue_rte")
        # the hub's test split has no labels, so that tasksource halves the validation split
        assert {split: counts["examples"] for split, counts in meta["splits"].items()} == {
            "train": 20,
            "valid": 4,
            "test": 4,
        }
        assert (meta["family"], meta["labels"]) == ("classification", ["entailment", "not_entailment"])
        assert meta["source"] == "nyu-mll/glue rte"
        _, examples = made("tasksource-glue_rte", tmp_path / "raw", tmp_path)
        first = {"inputs": ["the dog ran 0", "who ran 0"], "label": "entailment"}
        assert examples["train"][0] == first

    def test_what_is_up_to_date_stays(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        write_rte(tmp_path / "raw")
        # as another process gets it
        entry = pickle.loads(pickle.dumps(lookup("tasksource-glue_rte")))
        fetch = Fetch(tmp_path / "cache", tmp_path / "raw")
        for _ in range(2):
            (meta,), failures = prepare([entry], tokenizer, tmp_path / "out", fetch)
            assert not failures
            assert meta["entry"] == entry.sha256()
            fetch = Fetch(tmp_path / "cache", tmp_path / "nowhere")  # the second time nothing is read

    def test_choices(self, tmp_path: Path) -> None:
        columns = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")
        rows = [{c: f"{c} {i}" for c in columns} for i in range(40)]
        features = dict.fromkeys(columns, text())
        mirror(tmp_path / "raw", "allenai/sciq/default", features, train=rows, validation=rows[:8], test=rows[:8])
        entry, examples = made("tasksource-sciq", tmp_path / "raw", tmp_path)
        assert (entry.family, entry.label_names) == ("commonsense", [])
        places = set()
        for row, example in zip(rows, examples["train"], strict=True):
            assert example["context"] == row["question"]
            assert sorted(example["choices"]) == sorted(row[c] for c in columns[1:])
            assert example["choices"][example["answer"]] == row["correct_answer"]
            places.add(example["answer"])
        assert places == {0, 1, 2, 3}

    def test_choices_of_different_numbers(self, tmp_path: Path) -> None:
        import datasets

        letters = "ABCDE"
        rows = [
            {
                "question": f"who {i}",
                "choices": {"text": [f"dog {j}" for j in range(3 + i % 3)], "label": list(letters[: 3 + i % 3])},
                "answerKey": letters[i % 3],
            }
            for i in range(12)
        ]
        strings = datasets.List(text())
        features = {"question": text(), "choices": {"text": strings, "label": strings}, "answerKey": text()}
        folder = "allenai/ai2_arc/ARC-Easy"
        mirror(tmp_path / "raw", folder, features, train=rows, validation=rows[:4], test=rows[:4])
        _, examples = made("tasksource-ai2_arc_ARC-Easy_challenge", tmp_path / "raw", tmp_path)
        for row, example in zip(rows, examples["train"], strict=True):
            assert sorted(example["choices"]) == row["choices"]["text"]
            assert example["choices"][example["answer"]] == f"dog {letters.index(row['answerKey'])}"

    def test_tags(self, tmp_path: Path) -> None:
        import datasets

        rows = [{"tokens": ["the", "dog", "ran"], "ner_tags": [0, 1 + i % 2, 0]} for i in range(8)]
        features = {"tokens": datasets.List(text()), "ner_tags": datasets.List(classes("O", "B-PER", "I-PER"))}
        mirror(tmp_path / "raw", "tomaarsen/conll2003/default", features, train=rows, validation=rows, test=rows[:2])
        entry, examples = made("tasksource-conll2003_ner_tags", tmp_path / "raw", tmp_path)
        assert (entry.family, entry.label_names) == ("tagging", ["O", "B-PER", "I-PER"])
        assert examples["valid"][1] == {"words": ["the", "dog", "ran"], "tags": ["O", "I-PER", "O"]}

    def test_what_works_on_whole_datasets(self, tmp_path: Path) -> None:
        rows = [{"premise": f"the dog {i}", "hypothesis": "who ran", "label": i % 4 - 1} for i in range(16)]
        features = {"premise": text(), "hypothesis": text(), "label": classes("entailment", "neutral", "contradiction")}
        folder = "stanfordnlp/snli/plain_text"
        mirror(tmp_path / "raw", folder, features, train=rows, validation=rows, test=rows)
        _, examples = made("tasksource-snli", tmp_path / "raw", tmp_path)
        # its post_process drops the rows without a label
        assert [len(split) for split in examples.values()] == [12, 12, 12]

    def test_numbers(self, tmp_path: Path) -> None:
        import datasets

        rows = [{"sentence1": f"the dog {i}", "sentence2": "who ran", "label": i / 2} for i in range(10)]
        features = {"sentence1": text(), "sentence2": text(), "label": datasets.Value("float32")}
        mirror(tmp_path / "raw", "nyu-mll/glue/stsb", features, train=rows, validation=rows[:4], test=rows[:4])
        entry, examples = made("tasksource-glue_stsb", tmp_path / "raw", tmp_path)
        assert (entry.family, entry.metric) == ("regression", "pearson")
        assert examples["train"][3] == {"inputs": ["the dog 3", "who ran"], "label": 1.5}

    def test_classes_without_names_are_numbers(self, tmp_path: Path) -> None:
        import datasets

        rows = [{"sentence1": f"the dog {i}", "sentence2": "who ran", "label": 3 + i % 2} for i in range(10)]
        features = {"sentence1": text(), "sentence2": text(), "label": datasets.Value("int64")}
        mirror(tmp_path / "raw", "nyu-mll/glue/rte", features, train=rows, validation=rows[:4])
        entry, examples = made("tasksource-glue_rte", tmp_path / "raw", tmp_path)
        assert entry.label_names == ["3", "4"]
        assert examples["train"][0]["label"] == "3"

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("tasksource-glue_rtte", "did you mean 'tasksource-glue_rte'?"),
            ("tasksource-wiqa", "tasksource-wiqa cannot be used: tasksource reads certain files"),
        ],
    )
    def test_mistakes(self, name: str, said: str) -> None:
        with pytest.raises(MuppetError, match="tasksource") as error:
            lookup(name)
        assert said in str(error.value)

    def test_rows_that_do_not_fit(self, tmp_path: Path) -> None:
        features = {"sentence1": text(), "label": classes("a", "b")}
        rows = [{"sentence1": "the dog", "label": 0}] * 4
        mirror(tmp_path / "raw", "nyu-mll/glue/qnli", features, train=rows, validation=rows)
        with pytest.raises(MuppetError, match=r"task glue/qnli of tasksource .* does not fit nyu-mll/glue qnli"):
            made("tasksource-glue_qnli", tmp_path / "raw", tmp_path)

    def test_several_configurations(self, tmp_path: Path) -> None:
        for config in ("one", "two"):
            mirror(tmp_path / "raw", f"stanfordnlp/snli/{config}", {"premise": text()}, train=[{"premise": "the dog"}])
        with pytest.raises(MuppetError, match=r"several configurations \(one, two\)"):
            made("tasksource-snli", tmp_path / "raw", tmp_path)

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        write_rte(tmp_path / "raw")
        file = tmp_path / "raw" / "nyu-mll/glue/rte/train/0000.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(MuppetError, match=r"rte/\*/\*.parquet cannot be read \(.*\); fetch the files again"):
            made("tasksource-glue_rte", tmp_path / "raw", tmp_path)

    def test_no_files(self, tmp_path: Path) -> None:
        (tmp_path / "raw" / "nyu-mll" / "glue").mkdir(parents=True)
        with pytest.raises(MuppetError, match=r"has no files rte/\*/\*.parquet"):
            made("tasksource-glue_rte", tmp_path / "raw", tmp_path)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tasksource.access", None)
    monkeypatch.setitem(sys.modules, "tasksource", None)
    with pytest.raises(MuppetError, match=r"needs the package tasksource \(.*\): pip install tasksource"):
        lookup("tasksource-glue_rte")
