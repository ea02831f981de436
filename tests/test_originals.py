"""Files of original releases become rows of the hub's schema; what is wrong with one is named by file and line."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muppet_fairseq.errors import MuppetError
from preprocess.catalog import CATALOG
from preprocess.download import Fetch, Hub, PackageFile
from preprocess.originals import (
    Conll,
    FirstFound,
    Original,
    Reader,
    Tsv,
    bracketed_trees,
    glue_tsv,
    mrqa_lines,
    squad_json,
)
from preprocess.rows import LeaveOut


def read(reader: Reader, content: str | bytes) -> list[tuple[str, dict[str, Any]]]:
    data = content.encode("utf-8") if isinstance(content, str) else content
    return list(reader("some/file", io.BytesIO(data)))


def rows_of(reader: Reader, content: str | bytes) -> list[dict[str, Any]]:
    return [row for _, row in read(reader, content)]


def outcome(reader: Reader, content: str | bytes) -> list[str]:
    """Where each row stands, with what is wrong with it."""
    return [f"{where}: {row}" if isinstance(row, Exception) else where for where, row in read(reader, content)]


#: what a line of a file may hold, and what a column of a tab-separated one may
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\0"), max_size=12)
WORD = st.text(st.characters(exclude_categories=["Cs", "C", "Z"], exclude_characters="()"), min_size=1, max_size=6)

# -- GLUE's tab-separated files ------------------------------------------------------------------------

_STS = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
_MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2"
)
GLUE_FILES = {
    "cola": ("gj04\t1\t\tThe cat slept.\nks08\t0\t*\tSlept cat the.\n", {"sentence": "Slept cat the.", "label": 0}),
    "sst2": ('sentence\tlabel\nfine \t1\na "so-called joke \t0\n', {"sentence": 'a "so-called joke ', "label": 0}),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA.\tB.\n1\t3\t4\tC " d.\tE.\n',
        {"sentence1": 'C " d.', "sentence2": "E.", "label": 1},
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tcut in two\n2\t3\t4\tWhy?\tHow?\t0\n",
        {"question1": "Why?", "question2": "How?", "label": 0},
    ),
    "stsb": (
        f"{_STS}\n0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t5.000\n1\tg\tf\t2012\t2\tn\tn\tA dog.\tA cat.\t1.250\n",
        {"sentence1": "A dog.", "sentence2": "A cat.", "label": 1.25},
    ),
    "mnli": (
        f"{_MNLI}\tlabel1\tgold_label\n"
        "0\t1\t1n\tg\t( x )\t( y )\t(X)\t(Y)\tA.\tB.\tneutral\tneutral\n"
        "1\t2\t2c\tg\t( x )\t( y )\t(X)\t(Y)\tWe left.\tWe stayed.\tcontradiction\tcontradiction\n",
        {"premise": "We left.", "hypothesis": "We stayed.", "label": 2},
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tAda.\tentailment\n1\tWhen?\tHere.\tnot_entailment\n",
        {"question": "When?", "sentence": "Here.", "label": 1},
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tIt rains.\tIt is wet.\tentailment\n",
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n1\tIt fell.\tThe cup fell.\t0\n",
        {"sentence1": "It fell.", "sentence2": "The cup fell.", "label": 0},
    ),
}


@pytest.mark.parametrize("task", GLUE_FILES)
def test_glue_files_become_the_hubs_rows(task: str):
    content, expected = GLUE_FILES[task]
    assert rows_of(glue_tsv(task), content)[-1] == expected | {"idx": 1}
    assert rows_of(glue_tsv(task), content.replace("\n", "\r\n"))[-1] == expected | {"idx": 1}


def test_mnli_development_file_has_more_columns():
    content, expected = GLUE_FILES["mnli"]
    five = content.replace("label1", "\t".join(f"label{i}" for i in range(1, 6)))
    five = re.sub(r"\t(neutral|contradiction)\t(\w+)\n", r"\tneutral\tneutral\tneutral\tneutral\tneutral\t\2\n", five)
    assert rows_of(glue_tsv("mnli"), five)[-1] == expected | {"idx": 1}


def test_qqp_lines_cut_in_two_are_left_out_as_the_hub_does():
    content = GLUE_FILES["qqp"][0] + "3\t5\t6\tWhere?\tWhen?\t1\tand more\n"
    (_, cut), (_, second), (_, third) = read(glue_tsv("qqp"), content)
    assert isinstance(cut, LeaveOut)
    assert [(row["idx"], row["label"]) for row in (second, third)] == [(1, 0), (2, 1)]


@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 9)), max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_tsv_gives_back_any_text(lines: list[tuple[str, str, int]], end: str):
    """Quotation marks, odd line separators of Unicode and empty cells included."""
    content = "".join(f"{text}\t{more}\t{label}{end}" for text, more, label in [("a", "b", "label"), *lines])
    expected = [{"one": a, "two": b, "label": label, "idx": i} for i, (a, b, label) in enumerate(lines)]
    assert rows_of(Tsv({"one": "a", "two": "b"}), content) == expected


_RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("task", "content", "outcomes"),
    [
        ("rte", f"{_RTE}0\tA.\tB.\n1\tA.\tB.\tentailment", ["2: it has 3 columns instead of 4", "3"]),
        ("rte", f"{_RTE}0\tA\tb\tc\tentailment\n", ["2: it has 5 columns instead of 4"]),
        ("cola", "g\t1\t\tA.\n\ng\t1\t\tB.\n", ["1", "2: it has 1 columns instead of 4", "3"]),
        ("rte", f"{_RTE}0\tA.\tB.\tneutral", ["2: its label is 'neutral', none of entailment, not_entailment"]),
        ("sst2", "sentence\tlabel\nfine\tgood\n", ["2: its label is 'good', no number"]),
        ("sst2", b"sentence\tlabel\ncaf\xe9\t1\nb\t0", ["2: it is not UTF-8", "3"]),
        ("sst2", b"sentence\tlabel\na\0b\t1\nb\t0", ["2: it holds a NUL byte", "3"]),
    ],
)
def test_a_wrong_line_is_a_bad_row(task: str, content: str | bytes, outcomes: list[str]):
    assert outcome(glue_tsv(task), content) == [f"some/file:{one}" for one in outcomes]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("index\tsentence1\tlabel\n", "some/file:1 has no column 'sentence2'"),
        ("", "some/file:1 has no column 'sentence1'"),
        (b"\xff" + _RTE.encode(), "some/file:1 has no column names: it is not UTF-8"),
    ],
)
def test_without_its_column_names_a_file_is_not_read(content: str | bytes, sentence: str):
    with pytest.raises(MuppetError, match=re.escape(sentence)):
        read(glue_tsv("rte"), content)


# -- columns and trees ---------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), max_size=4),
    st.sampled_from([" ", "\t", "  "]),
    st.sampled_from(["", "\n", "\n \n"]),
)
def test_columns_give_back_any_sentences(sentences: list[list[tuple[str, str]]], gap: str, end: str):
    content = "\n\n".join("\n".join(gap.join(token) for token in sentence) for sentence in sentences) + end
    expected = [
        {"id": str(i), "tokens": [word for word, _ in sentence], "tags": [tag for _, tag in sentence]}
        for i, sentence in enumerate(sentences)
    ]
    assert rows_of(Conll("tokens", "tags"), content) == expected


def test_a_sentence_stands_where_its_first_token_does():
    content = "\nThe DT B-NP\nend NN I-NP\n\n\n. . O\n"
    assert [where for where, _ in read(Conll("tokens", "pos_tags", "chunk_tags"), content)] == [
        "some/file:2",
        "some/file:6",
    ]


@pytest.mark.parametrize(
    ("line", "outcomes"),
    [
        (b"end", ["1: line 2: it has 1 columns instead of 2"]),
        (b"\xff NN", ["1: line 2: it is not UTF-8"]),
        (b"", ["1", "3"]),
    ],
)
def test_a_sentence_with_a_wrong_line_is_a_bad_row(line: bytes, outcomes: list[str]):
    content = b"The DT\n" + line + b"\nbell NN\n\n. .\n"
    assert outcome(Conll("a", "b"), content) == [f"some/file:{one}" for one in [*outcomes, "5"]]


TREES = st.recursive(
    st.tuples(WORD, WORD),
    lambda tree: st.tuples(WORD, st.lists(tree, min_size=1, max_size=3)).map(lambda pair: (pair[0], *pair[1])),
    max_leaves=8,
)


def bracketed(tree: Any, gap: str) -> str:
    return f"({gap.join(bracketed(part, gap) if isinstance(part, tuple) else part for part in tree)})"


@given(st.lists(TREES, max_size=3), st.sampled_from([" ", "\n  ", "\t"]), st.booleans())
def test_trees_give_back_any_tree(trees: list[Any], gap: str, outer: bool):
    content = "\n".join(f"( {bracketed(tree, gap)} )" if outer else bracketed(tree, gap) for tree in trees)
    assert [row["tree"] for row in rows_of(bracketed_trees, content)] == trees


def test_trees_of_any_depth_and_several_tops():
    deep = rows_of(bracketed_trees, "(X " * 5000 + "x" + ")" * 5000)[0]["tree"]
    for _ in range(4999):
        (_, deep) = deep
    assert deep == ("X", "x")
    assert rows_of(bracketed_trees, "( (A a) (B b) )") == [{"tree": ("", ("A", "a"), ("B", "b"))}]
    assert [where for where, _ in read(bracketed_trees, "(A a)\n\n(B\n b)")] == ["some/file:1", "some/file:3"]


@pytest.mark.parametrize(
    ("content", "outcomes"),
    [
        ("(A a)\n)\n (B b)\n(C c)", ["1", "2: line 2: ')' stands where no bracket is open", "4"]),
        ("(A a)\nb (C c)\n", ["1", "2: line 2: 'b' stands where no bracket is open"]),
        ("(A a)\n( )\n(C c)", ["1", "2: line 2: a bracket is empty", "3"]),
        ("(A\n (B))\n(C c)", ["1: line 2: a bracket is empty", "3"]),
        (b"(A a)\n(B\n  \xff)\n(C c)", ["1", "2: line 3: it is not UTF-8", "4"]),
        # a closing bracket is missing: an opening one without label begins a tree
        ("( (A a)\n( (B b) )\n", ["1: it opens a bracket that nothing closes", "2"]),
        ("(A a)\n( (B b)\n", ["1", "2: it opens a bracket that nothing closes"]),
    ],
)
def test_a_wrong_tree_is_a_bad_row(content: str | bytes, outcomes: list[str]):
    assert outcome(bracketed_trees, content) == [f"some/file:{one}" for one in outcomes]


def test_where_the_next_tree_begins_must_be_known():
    with pytest.raises(MuppetError, match="some/file:2 opens a bracket that nothing closes"):
        read(bracketed_trees, "(A a)\n(B (C c)\n(D d)\n")


# -- JSON (that it gives the hub's rows, test_catalog.py sees) --------------------------------------------

_HEADER = '{"header": {"dataset": "NewsQA", "split": "dev"}}\n'


_QA = {"id": "1", "question": "q", "answers": [{"text": "c", "answer_start": 0}]}
_PASSAGE = {"context": "c", "context_tokens": [["c", 0]], "qas": []}
_FORMAT = "it is not in the release's format"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [('{"data": [\n]', "some/file:2 is no JSON"), (b'{"data":\n"caf\xe9"}', "some/file:2 is not UTF-8")],
)
def test_what_is_no_json_is_named_by_line(content: str | bytes, sentence: str):
    with pytest.raises(MuppetError, match=re.escape(sentence)):
        read(squad_json, content)


@pytest.mark.parametrize(
    ("paragraphs", "outcomes"),
    [
        (
            [{"context": "c", "qas": [{"id": "1"}, _QA]}],
            [f"[0].qas[0]: {_FORMAT} (KeyError('answers'))", "[0].qas[1]"],
        ),
        (
            [{"qas": [_QA]}, 5, {"context": "c"}, {"context": "c", "qas": [_QA]}],
            [
                f"[0].qas[0]: {_FORMAT} (KeyError('context'))",
                "[1]: it is no JSON object",
                "[2]: it has no list 'qas'",
                "[3].qas[0]",
            ],
        ),
    ],
)
def test_a_wrong_question_of_squad_is_a_bad_row(paragraphs: list[Any], outcomes: list[str]):
    content = json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]})
    assert outcome(squad_json, content) == [f"some/file:data[0].paragraphs{one}" for one in outcomes]


def test_a_wrong_line_of_mrqa_is_a_bad_row():
    lines = [{"context": "c"}, _PASSAGE | {"qas": [_QA, 5]}, _PASSAGE | {"context_tokens": [[1]]}]
    content = "\n".join([_HEADER.strip(), "{", *map(json.dumps, lines)])
    places = [one.partition(" (")[0] for one in outcome(mrqa_lines, content)]
    wrong = ["some/file:3", "some/file:4#1", "some/file:4#2", "some/file:5"]
    assert places == ["some/file:2: it is no JSON", *(f"{where}: {_FORMAT}" for where in wrong)]
    with pytest.raises(MuppetError, match="some/file:2 is no header of MRQA's format"):
        read(mrqa_lines, content.replace(_HEADER, "\n"))


# -- where the files are ------------------------------------------------------------------------------------

RTE = "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n"
ORIGINAL = Original("glue_data/RTE/{split}.tsv", glue_tsv("rte"), {"validation": "dev"})
HUB = Hub("nyu-mll/glue", "rte")
WHEEL = PackageFile("some-package==1.0", "0" * 64, ("rte.jsonl",))


def put(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8")
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def given_rows(source: Any, split: str, raw: Path | None, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    return list(source.rows(split, Fetch(tmp_path / "cache", raw)))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_original_reads_the_splits_files(tmp_path: Path, end: str):
    put(tmp_path / f"glue_data/RTE/dev.tsv{end}", RTE)
    assert ORIGINAL.is_in(tmp_path)
    row = {"sentence1": "A.", "sentence2": "B.", "label": 0, "idx": 0}
    assert given_rows(ORIGINAL, "validation", tmp_path, tmp_path) == [(f"glue_data/RTE/dev.tsv{end}:2", row)]
    with pytest.raises(MuppetError, match=r"there is no file .*glue_data/RTE/train\.tsv .*put it there"):
        given_rows(ORIGINAL, "train", tmp_path, tmp_path)
    with pytest.raises(MuppetError, match="is not downloaded; name the folder that has it with --raw"):
        given_rows(ORIGINAL, "train", None, tmp_path)


def test_a_split_may_be_several_folders_of_files(tmp_path: Path):
    source = Original("wsj/{split}/*.mrg", bracketed_trees, {"train": ("03", "02"), "valid": "22"})
    for section, number in (("02", 2), ("02", 1), ("03", 1), ("22", 1)):
        put(tmp_path / f"wsj/{section}/wsj_{number}.mrg", f"( (S s{section}{number}) )")
    trees = [row["tree"][1] for _, row in given_rows(source, "train", tmp_path, tmp_path)]
    assert trees == ["s031", "s021", "s022"]
    (tmp_path / "wsj/02/wsj_1.mrg").unlink()
    (tmp_path / "wsj/02/wsj_2.mrg").unlink()
    with pytest.raises(MuppetError, match=r"there is no file .*wsj/02/\*\.mrg"):
        next(source.rows("train", Fetch(tmp_path / "cache", tmp_path)))


def test_a_damaged_archive_is_one_sentence(tmp_path: Path):
    put(tmp_path / "glue_data/RTE/dev.tsv.gz", RTE)
    file = tmp_path / "glue_data/RTE/dev.tsv.gz"
    for damaged, last in ((file.read_bytes()[:-9], "glue_data/RTE/dev.tsv.gz:2"), (b"not gzip", "its beginning")):
        file.write_bytes(damaged)
        sentence = f"glue_data/RTE/dev.tsv.gz cannot be read after {last} ("
        with pytest.raises(MuppetError, match=re.escape(sentence)):
            given_rows(ORIGINAL, "validation", tmp_path, tmp_path)


def test_the_first_that_is_there_is_taken(tmp_path: Path):
    source = FirstFound(HUB, ORIGINAL)
    raw = tmp_path / "raw"
    put(raw / "glue_data/RTE/dev.tsv", RTE)
    # of the same repository, but another dataset's
    put(raw / "nyu-mll/glue/cola/validation/0000.parquet", "")
    assert [row["sentence1"] for _, row in given_rows(source, "validation", raw, tmp_path)] == ["A."]
    rows = [{"sentence1": "C.", "sentence2": "D.", "label": 1, "idx": 0}]
    file = raw / "nyu-mll/glue/rte/validation/0000.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(str(file))
    assert [row for _, row in given_rows(source, "validation", raw, tmp_path)] == rows
    assert str(source) == "nyu-mll/glue rte or glue_data/RTE/{split}.tsv of the original release"


def test_without_raw_the_first_that_is_downloaded_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Hub, "rows", lambda self, split, fetch: iter([(split, {"from": self.repo})]))
    assert given_rows(FirstFound(ORIGINAL, HUB), "train", None, tmp_path) == [("train", {"from": "nyu-mll/glue"})]
    with pytest.raises(MuppetError, match="is not downloaded"):
        given_rows(FirstFound(ORIGINAL), "train", None, tmp_path)


def test_nothing_there_is_one_sentence(tmp_path: Path):
    source = FirstFound(HUB, ORIGINAL, WHEEL)
    assert not source.is_in(tmp_path)
    with pytest.raises(MuppetError, match=r"has no files of nyu-mll/glue rte or glue_data/RTE/\{split\}\.tsv"):
        given_rows(source, "train", tmp_path, tmp_path)
    put(tmp_path / "some_package-1.0-py3-none-any.whl", "")
    assert WHEEL.is_in(tmp_path)


def test_an_entrys_fingerprint_tells_its_readers_apart():
    entry = CATALOG["squad"]
    fingerprints = {
        dataclasses.replace(entry, source=FirstFound(HUB, Original("a", reader))).sha256()
        for reader in (squad_json, mrqa_lines, glue_tsv("rte"), glue_tsv("wnli"), Conll("a"), Conll("a", "b"))
    }
    assert len(fingerprints) == 6
    assert entry.sha256() == dataclasses.replace(entry).sha256()
