"""Raw files that are damaged: a broken row is counted and named, a file that cannot be read on is one sentence."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import preprocess.__main__ as command
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families import FAMILIES
from preprocess.catalog import CATALOG
from preprocess.catalog.summarization import PatentArchives
from preprocess.convert import convert
from preprocess.download import Fetch, Hub, csv_rows, json_rows, parquet_rows
from preprocess.entry import Entry
from preprocess.originals import Conll, Original, Tsv, bracketed_trees, mrqa_lines, squad_json
from tests.real_data import write_fastbpe_tokenizer, write_sentencepiece_tokenizer
from tests.test_catalog import fixture_of, hub_of, mirror
from tests.toy_data import nli_entry, nli_rows, write_bert_tokenizer

COUNT = 200
ROWS = nli_rows(COUNT)
#: the fourth row, the one that is broken: "the dog ran 3", "who ran 9", "yes"
BROKEN = 3


def separated(mark: str) -> bytes:
    return "".join(mark.join(cells) + "\n" for cells in [list(ROWS[0]), *(row.values() for row in ROWS)]).encode()


def json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=50)
    return stream.getvalue()


SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": f"the dog {i} ran",
                    "qas": [{"id": str(i), "question": "who", "answers": [{"text": "dog", "answer_start": 4}]}],
                }
                for i in range(COUNT)
            ],
        }
    ]
}
_DETECTED = {"text": "dog", "char_spans": [[4, 6]], "token_spans": [[1, 1]]}
MRQA = [{"header": {"dataset": "NewsQA"}}] + [
    {
        "context": f"the dog {i} ran",
        "context_tokens": [["the", 0], ["dog", 4]],
        "qas": [
            {
                "qid": str(i),
                "question": "who",
                "question_tokens": [["who", 0]],
                "detected_answers": [_DETECTED],
                "answers": ["dog"],
            }
        ],
    }
    for i in range(COUNT)
]


def entry_of(name: str, source: Any, **changes: Any) -> Entry:
    return nli_entry(source, name=name, splits={"train": "all"}, **changes)


_MRC = {"family": "mrc", "metric": "squad", "labels": ()}
_TAGGING = {"family": "tagging", "metric": "accuracy", "labels": ("DT", "NN"), "fields": {"words": "w", "tags": "t"}}
_PTB = CATALOG["ptb_pos"]
#: formats: the file, its content of ``COUNT`` rows, and the entry that reads it
FORMATS: dict[str, tuple[str, bytes, Entry]] = {
    "json": ("x.jsonl", json_lines(ROWS), entry_of("json", Original("x.jsonl", json_rows))),
    "csv": ("x.csv", separated(","), entry_of("csv", Original("x.csv", csv_rows))),
    "tsv": (
        "x.tsv",
        separated("\t"),
        entry_of(
            "tsv",
            Original("x.tsv", Tsv({"premise": "premise", "hypothesis": "hypothesis"}, classes=("yes", "maybe", "no"))),
            labels={"0": "yes", "1": "maybe", "2": "no"},
        ),
    ),
    "conll": (
        "x.txt",
        b"\n".join(b"the DT\ndog%d NN\n" % i for i in range(COUNT)),
        entry_of("conll", Original("x.txt", Conll("w", "t")), **_TAGGING),
    ),
    "trees": (
        "x.mrg",
        b"".join(b"( (NP (DT the)\n    (NN dog%d)) )\n" % i for i in range(COUNT)),
        entry_of("trees", Original("x.mrg", bracketed_trees), **(_TAGGING | {"fields": _PTB.fields})),
    ),
    "squad": (
        "x.json",
        json.dumps(SQUAD).encode(),
        entry_of("squad", Original("x.json", squad_json), **_MRC, fields=CATALOG["squad"].fields),
    ),
    "mrqa": (
        "m.jsonl",
        json_lines(MRQA),
        entry_of("mrqa", Original("m.jsonl", mrqa_lines), **_MRC, fields=CATALOG["newsqa"].fields),
    ),
    "parquet": (
        "toys/nli/default/all/0000.parquet",
        parquet(pa.Table.from_pylist(ROWS)),
        entry_of("parquet", Hub("toys/nli")),
    ),
}


def put(raw: Path, path: str, content: bytes) -> None:
    file = raw / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "toy")


@pytest.fixture
def prepare(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any] | None, list[str]]]:
    """Runs the command on the files in ``tmp_path``; gives ``dataset.json``, if there is one, and standard error."""

    def run(entry: Entry, *options: str) -> tuple[dict[str, Any] | None, list[str]]:
        monkeypatch.setitem(CATALOG, entry.name, entry)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        arguments = ["--tokenizer", str(tokenizer), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
        status = command.main(["prepare", "--datasets", entry.name, *arguments, *options])
        errors = capsys.readouterr().err.splitlines()
        made = tmp_path / "out" / entry.name / "dataset.json"
        assert made.exists() == (status == 0)
        return (json.loads(made.read_text()) if status == 0 else None), errors

    return run


_ROW = json.dumps(ROWS[BROKEN]).encode()
_FORMAT = "it is not in the release's format"
_OFFSET = "its passage does not have the answer 'dog' at character 4"


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("json", b"dog ran 3", b"\xff ran 3", "4: it is not UTF-8"),
        ("json", b'{"premise": "the dog ran 3",', b'{"premise": "the', "4: it is no JSON ("),
        ("json", b'"premise": "the dog ran 3"', b'"premises": "the dog ran 3"', "4: it has no field 'premise'"),
        ("json", b'ran 9", "label": "yes"', b'ran 9", "label": "?"', "4: its label is '?', not one of yes, maybe, no"),
        ("json", b'"who ran 9"', b'["who"]', "4: it has ['who'] where a text belongs"),
        ("json", _ROW, b"5", "4: it is no JSON object"),
        ("json", _ROW, b"[" * 100_000, "4: it is no JSON ("),
        ("json", _ROW, b"\0" * 4096, "4: it holds a NUL byte"),
        ("csv", b"dog ran 3", b"\xff ran 3", "row 4: it is not UTF-8"),
        ("csv", b"dog ran 3", b"\0 ran 3", "row 4: it holds a NUL byte"),
        ("csv", b"ran 3,", b"ran 3", "row 4: it has 2 columns instead of 3"),
        ("csv", b"ran 3,", b"ran 3,,", "row 4: it has 4 columns instead of 3"),
        ("csv", b"the dog ran 3,", b'"the dog ran 3,', "row 4: it is no CSV (unexpected end of data)"),
        ("csv", b"the dog ran 3,", b'"the" dog ran 3,', "row 4: it is no CSV ("),
        ("csv", b"ran 9,yes", b"ran 9,?", "row 4: its label is '?', not one of yes, maybe, no"),
        ("tsv", b"dog ran 3", b"\xff ran 3", "5: it is not UTF-8"),
        ("tsv", b"ran 3\t", b"ran 3", "5: it has 2 columns instead of 3"),
        ("tsv", b"ran 9\tyes", b"ran 9\t?", "5: its label is '?', none of yes, maybe, no"),
        ("conll", b"dog3 NN", b"dog3", "10: line 11: it has 1 columns instead of 2"),
        ("conll", b"dog3 NN", b"dog3 XY", "10: its word 2 has the tag 'XY', which is none of the 2"),
        ("trees", b"(NN dog3)) )", b"(NN dog3) )", "7: it opens a bracket that nothing closes"),
        ("trees", b"(NN dog3)", b"(NN \xff)", "7: line 8: it is not UTF-8"),
        ("squad", b'{"id": "3"', b'{"ID": "3"', f"data[0].paragraphs[3].qas[0]: {_FORMAT} (KeyError('id'))"),
        ("squad", b'"the dog 3 ran"', b'"the cat 3 ran"', f"data[0].paragraphs[3].qas[0]: {_OFFSET}"),
        ("mrqa", b'{"qid": "3"', b'{"QID": "3"', f"5#1: {_FORMAT} (KeyError('qid'))"),
        ("mrqa", b'"the dog 3 ran"', b'"the cat 3 ran"', f"5#1: {_OFFSET}"),
    ],
)
def test_a_broken_row_is_counted_and_named(
    name: str, old: bytes, new: bytes, fault: str, prepare: Callable, tmp_path: Path
):
    path, content, entry = FORMATS[name]
    assert old in content
    put(tmp_path, path, content.replace(old, new, 1))
    meta, (warning,) = prepare(entry)
    assert warning.startswith(f"muppet: {name}: left out {path}:{fault}")
    split = meta["splits"]["train"]
    assert (split["examples"], split["dropped"]) == (COUNT - 1, {"bad row": 1})
    meta, errors = prepare(entry, "--max-bad-share", "0.004")
    assert meta is None
    assert errors[-1].startswith(f"muppet: {name}: 1 of {COUNT} rows cannot be used, more than --max-bad-share 0.004")
    assert f"the first is {path}:{fault}" in errors[-1]


def _text_array(cells: list[bytes]) -> pa.Array:
    """What Parquet calls text, whether it is or not."""
    raw = pa.array(cells)
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize(
    ("make", "column", "new", "fault"),
    [
        (_text_array, "premise", b"\xff", "it is not UTF-8"),
        (pa.array, "premise", b"\xff", "its field 'premise' is not UTF-8"),
        (pa.array, "hypothesis", None, "its field 'hypothesis' is empty"),
        (_text_array, "label", b"?", "its label is '?', not one of yes, maybe, no"),
    ],
)
def test_a_broken_row_of_parquet_is_counted_and_named(
    make: Callable, column: str, new: bytes | None, fault: str, prepare: Callable, tmp_path: Path
):
    path, _, entry = FORMATS["parquet"]
    cells = [new if i == BROKEN else row[column].encode() for i, row in enumerate(ROWS)]
    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    put(tmp_path, path, parquet(pa.table(columns | {column: make(cells)})))
    meta, warnings = prepare(entry)
    assert warnings == [f"muppet: parquet: left out {path}:row 4: {fault}"]
    split = meta["splits"]["train"]
    assert (split["examples"], split["dropped"]) == (COUNT - 1, {"bad row": 1})


def test_bytes_that_nobody_reads_are_no_fault(prepare: Callable, tmp_path: Path):
    path, _, entry = FORMATS["parquet"]
    put(tmp_path, path, parquet(pa.Table.from_pylist([row | {"image": b"\xff\xd8"} for row in ROWS])))
    meta, errors = prepare(entry)
    assert errors == []
    assert meta["splits"]["train"]["examples"] == COUNT


@pytest.mark.parametrize("name", ["json", "csv", "tsv", "conll", "trees", "squad", "mrqa"])
def test_marks_of_other_systems_make_no_difference(name: str, prepare: Callable, tmp_path: Path):
    """A byte order mark, Windows' line ends, no line end at the end."""
    path, content, entry = FORMATS[name]
    put(tmp_path, path, content)
    plain = list(entry.source.rows("all", Fetch(tmp_path, tmp_path)))
    put(tmp_path, path, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n").rstrip(b"\r\n"))
    assert list(entry.source.rows("all", Fetch(tmp_path, tmp_path))) == plain
    assert len(plain) == COUNT


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_is_named(name: str, prepare: Callable, tmp_path: Path):
    path, _, entry = FORMATS[name]
    put(tmp_path, path, b"")
    meta, (sentence,) = prepare(entry)
    assert meta is None
    assert path in sentence


PARQUET = FORMATS["parquet"][1]
_FIRST, _SECOND = (f"toys/nli/default/all/000{i}.parquet" for i in range(2))


def _of_columns(**columns: list[Any]) -> bytes:
    return parquet(pa.table(columns))


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (PARQUET[:-100], f"{_SECOND} is damaged after row 0 ("),
        (b"", f"{_SECOND} is damaged after row 0 ("),
        (
            _of_columns(premise=["a"], label=["no"]),
            f"{_SECOND} has other columns than {_FIRST} (only one of them has 'hypothesis'); fetch both again",
        ),
        (
            _of_columns(premise=["a"], hypothesis=["b"], label=[2]),
            f"{_SECOND} has other columns than {_FIRST} (Unable to merge: Field label has incompatible types: string",
        ),
    ],
)
def test_a_parquet_file_unlike_the_first_is_named(second: bytes, sentence: str, prepare: Callable, tmp_path: Path):
    put(tmp_path, _FIRST, PARQUET)
    put(tmp_path, _SECOND, second)
    meta, (error,) = prepare(FORMATS["parquet"][2])
    assert meta is None
    assert error.startswith(f"muppet: {sentence}")


def test_parquet_files_may_differ_in_what_makes_no_difference(prepare: Callable, tmp_path: Path):
    put(tmp_path, _FIRST, PARQUET)
    large = pa.table({key: pa.array([row[key] for row in ROWS], pa.large_string()) for key in reversed(ROWS[0])})
    put(tmp_path, _SECOND, parquet(large))
    meta, errors = prepare(FORMATS["parquet"][2])
    assert errors == []
    assert meta["splits"]["train"]["examples"] == 2 * COUNT


def test_what_cannot_be_read_on_is_named_with_the_last_good_row(prepare: Callable, tmp_path: Path):
    path, content, entry = FORMATS["json"]
    # the last row is too long for what is left
    content += json_lines([ROWS[0] | {"more": "".join(map(str, range(100_000)))}])
    put(tmp_path, f"{path}.gz", gzip.compress(content)[:-200_000])
    _, (error,) = prepare(entry)
    assert error.startswith(f"muppet: {path}.gz cannot be read after {path}.gz:{COUNT} (")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train/0.gz", gzip.compress(FORMATS["json"][1])[:-100])
    put(tmp_path, "toys/patents/data/1/train.zip", stream.getvalue())
    entry = nli_entry(PatentArchives("toys/patents", "1"), splits={"train": "train"})
    _, (error,) = prepare(entry)
    assert error.startswith(
        "muppet: toys/patents/data/1/train.zip cannot be read after toys/patents/data/1/train.zip/tr"
    )
    put(tmp_path, "x.json", FORMATS["squad"][1][:-10])
    _, (error,) = prepare(FORMATS["squad"][2])
    assert error.startswith("muppet: x.json:1 is no JSON (")


# -- any damage --------------------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 30), st.binary(max_size=8)), min_size=1, max_size=4
)


def damaged(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """The content with some bytes, at a share of its length, replaced by others."""
    for share, length, new in edits:
        begin = int(share * len(content))
        content = content[:begin] + new + content[begin + length :]
    return content


def lines_of(content: bytes, blank: bytes) -> int:
    return sum(bool(line.strip(blank)) for line in content.split(b"\n"))


#: where the number of rows can be told from the damaged file
NUMBERS: dict[str, Callable[[bytes], int]] = {
    "json": lambda content: lines_of(content.removeprefix(b"\xef\xbb\xbf"), b" \t\r"),
    "tsv": lambda content: content.count(b"\n") + (not content.endswith(b"\n")) - 1,
}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(edits=EDITS)
def test_any_damage_is_accounted_for(name: str, edits: list, tmp_path_factory: pytest.TempPathFactory):
    path, content, entry = FORMATS[name]
    raw = tmp_path_factory.getbasetemp() / f"any-{name}"
    content = damaged(content, edits)
    put(raw, path, content)
    try:
        train = convert(entry, Fetch(raw, raw), max_bad_share=1.0)["train"]
        kept = len(list(train.examples))
    except MuppetError as error:
        sentence = str(error)
    else:
        sentence = path
        assert kept + train.account.dropped.total() == train.account.rows
        assert name not in NUMBERS or train.account.rows == NUMBERS[name](content)
    assert path in sentence
    assert "\n" not in sentence


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.sampled_from(["text", "start", "a"]), value),
    max_leaves=4,
)
EXAMPLES = {
    "classification": {"inputs": ["a", "b"], "label": "no"},
    "regression": {"inputs": ["a"], "label": 1.5},
    "commonsense": {"context": "a", "choices": ["b", "c"], "answer": 1},
    "mrc": {"question": "a", "passage": "the dog", "answers": [{"text": "dog", "start": 4}]},
    "summarization": {"source": "a b", "target": "a"},
    "tagging": {"words": ["a", "b"], "tags": ["DT", "NN"]},
}


@pytest.mark.parametrize("family", EXAMPLES)
@settings(max_examples=100)
@given(data=st.data())
def test_any_value_is_a_bad_row_or_can_be_written(
    family: str, data: st.DataObject, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
):
    """Rows whose fields hold any JSON: what is not refused can be encoded."""
    row = json.loads(json.dumps(EXAMPLES[family]))
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    inputs = row["inputs"] if isinstance(row.get("inputs"), list) else []
    if inputs and data.draw(st.booleans()):
        inputs[-1] = data.draw(JSON)
    raw = tmp_path_factory.getbasetemp() / f"value-{family}"
    put(raw, "x.jsonl", json_lines([EXAMPLES[family], row]))
    fields = {key: key for key in row}
    if "inputs" in fields:
        fields["inputs"] = [lambda row, i=i: row["inputs"][i] for i in range(len(EXAMPLES[family]["inputs"]))]
    labels = {"classification": ("no",), "tagging": ("DT", "NN")}.get(family, ())
    entry = entry_of("any", Original("x.jsonl", json_rows), family=family, fields=fields, labels=labels)
    examples = list(convert(entry, Fetch(raw, raw), max_bad_share=1.0)["train"].examples)
    assert EXAMPLES[family].items() <= examples[0].items()
    FAMILIES[family].encode(examples, Tokenizer.load(tokenizer), labels)


# -- Parquet as the library gives it -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squad", "nq", "hotpot_qa", "web_nlg", "trivia_qa", "arc_easy", "wsc", "multirc"])
def test_rows_of_parquet_are_those_of_the_library(name: str, tmp_path: Path):
    """Nested columns, class labels and missing values, from files with the published schema."""
    fixture, hub = fixture_of(name), hub_of(CATALOG[name])
    mirror(CATALOG[name], fixture, tmp_path)
    for split in fixture["rows"]:
        file = tmp_path / hub.repo / hub.config / split / "0000.parquet"
        expected = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
        assert [row for _, row in parquet_rows("x", file)] == list(expected)


NESTED = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "answers": st.none() | st.fixed_dictionaries({"text": st.lists(st.none() | st.just("a"), max_size=2)}),
        "pairs": st.lists(st.fixed_dictionaries({"start": st.none() | st.integers(0, 9)}), max_size=2),
        "label": st.none() | st.integers(0, 2),
    }
)
FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "answers": {"text": datasets.List(datasets.Value("string"))},
        "pairs": datasets.List({"start": datasets.Value("int32")}),
        "label": datasets.ClassLabel(names=["a", "b", "c"]),
    }
)


@settings(max_examples=30)
@given(st.lists(NESTED, min_size=1, max_size=5))
def test_any_rows_of_parquet_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    file = tmp_path_factory.getbasetemp() / "nested.parquet"
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(str(file))
    expected = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
    assert [row for _, row in parquet_rows("x", file)] == list(expected)


# -- long lines --------------------------------------------------------------------------------------------------

WORDS = ["the dog ran over the hill and far away", "number 1234567890 of many", "abcdefghij and so on"] * 200


@pytest.fixture(scope="module", params=["bert", "gpt2", "sentencepiece", "fastbpe"])
def any_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / request.param
    if request.param == "bert":
        return write_bert_tokenizer(folder)
    if request.param == "sentencepiece":
        return write_sentencepiece_tokenizer(folder, WORDS, hard_vocab_limit=False)
    return (
        write_fastbpe_tokenizer(folder, WORDS) if request.param == "fastbpe" else request.getfixturevalue("gpt2_folder")
    )


LONG = {
    "words": "the dog " * 50_000,
    "word": "abcdefghij" * 10_000,
    "letter": "a" * 100_000,
    "spaces": f"a{' ' * 100_000}b",
}


@pytest.mark.parametrize("name", ["json", "csv", "tsv"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_line_goes_through(
    name: str, text: str, any_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, content, entry = FORMATS[name]
    put(tmp_path, path, content.replace(b"the dog ran 3", text.encode(), 1))
    monkeypatch.setitem(CATALOG, name, entry)
    arguments = ["--tokenizer", str(any_tokenizer), "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
    begin = time.monotonic()
    assert command.main(["prepare", "--datasets", name, *arguments]) == 0
    assert time.monotonic() - begin < 10
    meta = json.loads((tmp_path / "out" / name / "dataset.json").read_text())
    assert (meta["splits"]["train"]["examples"], meta["splits"]["train"]["dropped"]) == (COUNT, {})
