"""Files of original releases, for users who have those: :class:`Original` reads them, :class:`FirstFound` takes them
or the hub's.

A reader turns a file into rows of the very schema that the hub's rows of the dataset have, so that one catalog
entry serves both. It is called with the file's name and the open file and yields (where, row); what is wrong with
the file is an error that names the line.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from muppet_fairseq.errors import MuppetError
from preprocess.download import Fetch, Hub, Row, Source, json_rows

Reader = Callable[[str, IO[bytes]], Iterator[tuple[str, Row]]]
#: a bracket's label and what stands in it: words and more brackets
Tree = tuple[Any, ...]


@dataclass(frozen=True)
class Original(Source):
    """Files of the original release, in the folder that ``--raw`` names; they are never downloaded.

    Attributes:
        path: of the files in that folder; ``{split}`` stands for the split, ``*`` for any characters of a name.
            A file may be compressed: where there is none, one with ``.gz`` at the end is taken.
        reader: turns a file into rows.
        names: splits to what stands for ``{split}`` in the path where that is not the split's own name, or to
            several such names, as of the sections of a treebank.
    """

    path: str
    reader: Reader
    names: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path} of the original release"

    def is_in(self, raw: Path) -> bool:
        return bool(_files(raw, self.path.format(split="*")))

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        if fetch.raw is None:
            raise MuppetError(f"{self.path} is not downloaded; name the folder that has it with --raw")
        names = self.names.get(split, split)
        patterns = [self.path.format(split=name) for name in ([names] if isinstance(names, str) else names)]
        for pattern in patterns:
            if not _files(fetch.raw, pattern):
                raise MuppetError(f"there is no file {fetch.raw / pattern} (or with .gz at its end); put it there")
        for pattern in patterns:
            for file in _files(fetch.raw, pattern):
                yield from read_rows(file, file.relative_to(fetch.raw).as_posix(), self.reader)


def read_rows(file: Path, name: str, reader: Reader) -> Iterator[tuple[str, Row]]:
    """Yield what ``reader`` makes of a file, compressed where it ends in ``.gz``; errors call it ``name``.

    Raises MuppetError if it cannot be read, or what the reader raises.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield from reader(name, stream)
    except (EOFError, OSError, zlib.error) as error:
        raise MuppetError(f"{name} cannot be read ({error}); fetch the file again") from None


def _files(raw: Path, pattern: str) -> list[Path]:
    return sorted(raw.glob(pattern)) or sorted(raw.glob(f"{pattern}.gz"))


@dataclass(frozen=True, init=False)
class FirstFound(Source):
    """The first of several sources of the same rows: with ``--raw`` the first that is there, in the order given,
    without it the first that is downloaded."""

    sources: tuple[Source, ...]

    def __init__(self, *sources: Source) -> None:
        object.__setattr__(self, "sources", sources)

    def __str__(self) -> str:
        return " or ".join(map(str, self.sources))

    def is_in(self, raw: Path) -> bool:
        return any(source.is_in(raw) for source in self.sources)

    def rows(self, split: str, fetch: Fetch) -> Iterator[tuple[str, Row]]:
        return self._chosen(fetch.raw).rows(split, fetch)

    def _chosen(self, raw: Path | None) -> Source:
        for source in self.sources:
            if source.is_in(raw) if raw is not None else not isinstance(source, Original):
                return source
        if raw is None:
            return self.sources[0]  # its error says that it is not downloaded
        raise MuppetError(f"{raw} has no files of {self}; put some there, or leave out --raw")


def squad_json(name: str, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """SQuAD's own JSON: articles of paragraphs of questions; rows as ``rajpurkar/squad`` has them."""
    articles = _whole_json(name, stream)
    where = f"{name}:data"
    try:
        for i, article in enumerate(articles["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                for k, qa in enumerate(paragraph["qas"]):
                    where = f"{name}:data[{i}].paragraphs[{j}].qas[{k}]"
                    answers = {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")}
                    row = {"id": qa["id"], "title": article["title"], "context": paragraph["context"]}
                    yield where, row | {"question": qa["question"], "answers": answers}
    except (KeyError, TypeError) as error:
        raise MuppetError(f"{name} is not in SQuAD's format after {where} ({error!r}); fetch the file again") from None


def mrqa_lines(name: str, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """The MRQA 2019 release's JSON lines: a header, then passages with their questions; rows as
    ``mrqa-workshop/mrqa`` has them."""
    subset = None
    for where, line in json_rows(name, stream):
        try:
            if subset is None:
                subset = line["header"]["dataset"]
                continue
            passage = {
                "subset": subset,
                "context": line["context"],
                "context_tokens": _columns(line["context_tokens"], "tokens", "offsets"),
            }
            for number, qa in enumerate(line["qas"], 1):
                yield f"{where}#{number}", passage | _mrqa_question(qa)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MuppetError(f"{where} is not in MRQA's format ({error!r}); fetch the file again") from None


def _mrqa_question(qa: dict[str, Any]) -> Row:
    detected = qa["detected_answers"]
    return {
        "qid": qa["qid"],
        "question": qa["question"],
        "question_tokens": _columns(qa["question_tokens"], "tokens", "offsets"),
        "detected_answers": {
            "text": [answer["text"] for answer in detected],
            "char_spans": [_columns(answer["char_spans"], "start", "end") for answer in detected],
            "token_spans": [_columns(answer["token_spans"], "start", "end") for answer in detected],
        },
        "answers": qa["answers"],
    }


def _columns(pairs: Sequence[Sequence[Any]], first: str, second: str) -> dict[str, list[Any]]:
    return {first: [pair[0] for pair in pairs], second: [pair[1] for pair in pairs]}


@dataclass(frozen=True)
class Tsv:
    """Lines of columns with a tab between them and no quoting: a quotation mark is one of the text.

    Attributes:
        texts: the row's columns to the file's, by their names in its first line, or by number (from 0) in a file
            whose first line is not their names; such a file has ``width`` columns.
        label: the label's column, likewise.
        classes: the labels' names in the order of their numbers; none: the file has the numbers.
        real: the labels are numbers like 2.5, of single precision as the hub's.
        ragged: lines with too few columns are skipped, and further columns are ignored, as the hub's conversion does;
            some of QQP's lines are cut in two.
    """

    texts: Mapping[str, str | int]
    label: str | int = "label"
    classes: tuple[str, ...] = ()
    real: bool = False
    width: int | None = None
    ragged: bool = False

    def __call__(self, name: str, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
        lines = ((number, text.split("\t")) for number, text in _lines(name, stream))
        width, place = self.width, {column: column for column in [*self.texts.values(), self.label]}
        if width is None:
            _, header = next(lines, (1, []))
            missing = [column for column in place if column not in header]
            if missing:
                raise MuppetError(f"{name}:1 has no column {missing[0]!r}; fetch the file again")
            width, place = len(header), {column: header.index(column) for column in place}
        for index, (number, cells) in enumerate(lines):
            where = f"{name}:{number}"
            if self.ragged and len(cells) < width:
                continue
            if len(cells) != width and not self.ragged:
                raise MuppetError(f"{where} has {len(cells)} columns instead of {width}; fetch the file again")
            texts = {column: cells[place[theirs]] for column, theirs in self.texts.items()}
            yield where, texts | {"label": self._label(cells[place[self.label]], where), "idx": index}

    def _label(self, text: str, where: str) -> float:
        if text in self.classes:
            return self.classes.index(text)
        try:
            if not self.classes:
                return float(np.float32(text)) if self.real else int(text)
        except ValueError:
            pass
        expected = f"none of {', '.join(self.classes)}" if self.classes else "no number"
        raise MuppetError(f"{where} has the label {text!r}, {expected}; fetch the file again")


_PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}
_ENTAILED = ("entailment", "not_entailment")
#: the folders of GLUE's own download and how their files are read, by the hub's names of the tasks
_GLUE = {
    "cola": ("CoLA", Tsv({"sentence": 3}, label=1, width=4)),
    "sst2": ("SST-2", Tsv({"sentence": "sentence"})),
    "mrpc": ("MRPC", Tsv({"sentence1": "#1 String", "sentence2": "#2 String"}, label="Quality")),
    "qqp": ("QQP", Tsv({"question1": "question1", "question2": "question2"}, label="is_duplicate", ragged=True)),
    "stsb": ("STS-B", Tsv(_PAIR, label="score", real=True)),
    "mnli": (
        "MNLI",
        Tsv(
            {"premise": "sentence1", "hypothesis": "sentence2"},
            label="gold_label",
            classes=("entailment", "neutral", "contradiction"),
        ),
    ),
    "qnli": ("QNLI", Tsv({"question": "question", "sentence": "sentence"}, classes=_ENTAILED)),
    "rte": ("RTE", Tsv(_PAIR, classes=_ENTAILED)),
    "wnli": ("WNLI", Tsv(_PAIR)),
}
_GLUE_FILES = {
    "train": "train.tsv",
    "validation": "dev.tsv",
    "validation_matched": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    # only MRPC's test labels are published: not in its test.tsv, but in the file that was made of
    "test": "msr_paraphrase_test.txt",
}


def glue_tsv(task: str) -> Tsv:
    """The reader of a GLUE task's ``train.tsv`` and ``dev.tsv``; rows as ``nyu-mll/glue`` has them, but for ``idx``:
    it counts the file's lines, and MRPC's files were split from one that the hub counts."""
    return _GLUE[task][1]


def glue(task: str) -> FirstFound:
    """A task of GLUE, by the hub's name: the hub's files, or in the folder that ``--raw`` names the folder
    ``glue_data`` as GLUE's own download script makes it (``glue_data/RTE/train.tsv``)."""
    original = Original(f"glue_data/{_GLUE[task][0]}/{{split}}", glue_tsv(task), _GLUE_FILES)
    return FirstFound(Hub("nyu-mll/glue", task), original)


@dataclass(frozen=True, init=False)
class Conll:
    """Sentences of one token a line, white space between its columns, an empty line between sentences; a row is a
    sentence: ``id`` and a list for each of ``columns``."""

    columns: tuple[str, ...]

    def __init__(self, *columns: str) -> None:
        object.__setattr__(self, "columns", columns)

    def __call__(self, name: str, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
        first, tokens, sentences = 1, [], 0
        for number, text in _lines(name, stream):
            cells = text.split()
            if cells:
                if len(cells) != len(self.columns):
                    raise MuppetError(
                        f"{name}:{number} has {len(cells)} columns instead of {len(self.columns)}; fetch the file again"
                    )
                first = first if tokens else number
                tokens.append(cells)
            elif tokens:
                yield f"{name}:{first}", self._row(sentences, tokens)
                tokens, sentences = [], sentences + 1
        if tokens:
            yield f"{name}:{first}", self._row(sentences, tokens)

    def _row(self, number: int, tokens: list[list[str]]) -> Row:
        columns = zip(self.columns, zip(*tokens, strict=True), strict=True)
        return {"id": str(number)} | {column: list(cells) for column, cells in columns}


def bracketed_trees(name: str, stream: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """The trees of a treebank's ``.mrg`` files, ``( (S (NP (DT the) (NN end)) (. .)) )``; a row is a tree.

    ``tree`` is a bracket's label and its parts: ``("S", ("NP", ("DT", "the"), ("NN", "end")), (".", "."))``. The
    Penn Treebank's outermost brackets, which have no label, are left out.
    """
    open_at: list[int] = []
    stack: list[list[Any]] = []
    for number, text in _lines(name, stream):
        for token in re.findall(r"[()]|[^\s()]+", text):
            if token == "(":
                open_at.append(number)
                stack.append([])
            elif not stack:
                what = "closes a bracket that is not open" if token == ")" else f"has {token!r} outside brackets"
                raise MuppetError(f"{name}:{number} {what}; fetch the file again")
            elif token == ")":
                begin, tree = open_at.pop(), _bracket(stack.pop())
                if tree is None:
                    raise MuppetError(f"{name}:{begin} has an empty bracket; fetch the file again")
                if stack:
                    stack[-1].append(tree)
                else:
                    yield f"{name}:{begin}", {"tree": tree}
            else:
                stack[-1].append(token)
    if stack:
        raise MuppetError(f"{name}:{open_at[0]} opens a bracket that nothing closes; fetch the file again")


def _bracket(parts: list[Any]) -> Tree | None:
    """The tree of a bracket's parts; None if there is nothing in it, or only a label."""
    if not parts or parts == [str(parts[0])]:
        return None
    if isinstance(parts[0], str):
        return tuple(parts)
    return parts[0] if len(parts) == 1 else ("", *parts)


def _lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of each line; only line feeds end one, and a byte order mark is no text."""
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise MuppetError(f"{name}:{number} is not UTF-8 ({error.reason}); fetch the file again") from None
        yield number, text.removesuffix("\n").removesuffix("\r")


def _whole_json(name: str, stream: IO[bytes]) -> dict[str, Any]:
    content = stream.read()
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise MuppetError(f"{name}:{number} is not UTF-8 ({error.reason}); fetch the file again") from None
    except json.JSONDecodeError as error:
        raise MuppetError(f"{name}:{error.lineno} is no JSON ({error.msg}); fetch the file again") from None
