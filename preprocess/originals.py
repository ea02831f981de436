"""Files of original releases, for users who have those: :class:`Original` reads them, :class:`FirstFound` takes them
or the hub's.

A reader turns a file into rows of the very schema that the hub's rows of the dataset have, so that one catalog
entry serves both. It is called with the file's name and the open file and yields (where, row), or (where, what is
wrong) for what it cannot make a row of; only a file that it cannot read on is an error, which names the line.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from muppet_fairseq.errors import MuppetError
from preprocess.download import Fetch, Hub, Source, SourceFile, decoded_lines, json_rows, until_damage
from preprocess.rows import BadRow, LeaveOut, Row, RowIterator

#: bytes of a file that is one JSON value, and is in memory as a whole
_LARGEST_JSON = 1 << 32
#: why a line of a file is left out
CUT_IN_TWO = "its line is cut in two"

Reader = Callable[[str, IO[bytes]], RowIterator]
Result = TypeVar("Result")
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

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        if fetch.raw is None:
            return None
        paths = [path for split in splits for pattern in self._patterns(split) for path in _files(fetch.raw, pattern)]
        return [SourceFile(str(path), path.stat().st_size, True) for path in paths]

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        if fetch.raw is None:
            raise MuppetError(f"{self.path} is not downloaded; name the folder that has it with --raw")
        for pattern in self._patterns(split):
            if not _files(fetch.raw, pattern):
                raise MuppetError(f"there is no file {fetch.raw / pattern} (or with .gz at its end); put it there")
        for pattern in self._patterns(split):
            for file in _files(fetch.raw, pattern):
                yield from read_rows(file, file.relative_to(fetch.raw).as_posix(), self.reader)

    def _patterns(self, split: str) -> list[str]:
        names = self.names.get(split, split)
        return [self.path.format(split=name) for name in ([names] if isinstance(names, str) else names)]


def read_rows(file: Path, name: str, reader: Reader) -> RowIterator:
    """Yield what ``reader`` makes of a file, compressed where it ends in ``.gz``; errors call it ``name``.

    Raises MuppetError if it cannot be read on, or what the reader raises.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield from until_damage(name, reader(name, stream))
    except OSError as error:  # it cannot be opened
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

    def files(self, splits: Iterable[str], fetch: Fetch) -> list[SourceFile] | None:
        return self._chosen(fetch.raw).files(splits, fetch)

    def identity(self, fetch: Fetch) -> dict[str, str] | None:
        return self._chosen(fetch.raw).identity(fetch)

    def rows(self, split: str, fetch: Fetch) -> RowIterator:
        return self._chosen(fetch.raw).rows(split, fetch)

    def _chosen(self, raw: Path | None) -> Source:
        for source in self.sources:
            if source.is_in(raw) if raw is not None else not isinstance(source, Original):
                return source
        if raw is None:
            return self.sources[0]  # its error says that it is not downloaded
        raise MuppetError(f"{raw} has no files of {self}; put some there, or leave out --raw")


def squad_json(name: str, stream: IO[bytes]) -> RowIterator:
    """SQuAD's own JSON: articles of paragraphs of questions; rows as ``rajpurkar/squad`` has them."""
    yield from _squad_rows(_whole_json(name, stream), f"{name}:", ["data", "paragraphs", "qas"], {})


def _squad_rows(node: Any, where: str, lists: Sequence[str], above: Row) -> RowIterator:
    """The questions in the nested ``lists`` of a node; for a part that has none, what is wrong with it."""
    if not isinstance(node, dict):
        yield where[:-1], BadRow("it is no JSON object")
    elif not lists:
        yield where[:-1], _made(_squad_row, above | node)
    elif not isinstance(node.get(lists[0]), list):
        yield where[:-1], BadRow(f"it has no list {lists[0]!r}")
    else:
        for number, part in enumerate(node[lists[0]]):
            yield from _squad_rows(part, f"{where}{lists[0]}[{number}].", lists[1:], above | node)


def _squad_row(question: Row) -> Row:
    answers = {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")}
    return {key: question[key] for key in ("id", "title", "context", "question")} | {"answers": answers}


def mrqa_lines(name: str, stream: IO[bytes]) -> RowIterator:
    """The MRQA 2019 release's JSON lines: a header, then passages with their questions; rows as
    ``mrqa-workshop/mrqa`` has them."""
    lines = json_rows(name, stream)
    where, header = next(lines, (name, {}))
    subset = _made(lambda: header["header"]["dataset"])
    if isinstance(subset, BadRow):
        raise MuppetError(f"{where} is no header of MRQA's format; fetch the file again")
    for where, line in lines:
        passage = line if isinstance(line, BadRow) else _made(_mrqa_passage, line)
        if isinstance(passage, BadRow):
            yield where, passage
            continue
        for number, qa in enumerate(passage.pop("qas"), 1):
            yield f"{where}#{number}", _made(_mrqa_row, {"subset": subset} | passage, qa)


def _mrqa_passage(line: Row) -> Row:
    return {
        "context": line["context"],
        "context_tokens": _columns(line["context_tokens"], "tokens", "offsets"),
        "qas": list(line["qas"]),
    }


def _mrqa_row(passage: Row, qa: Row) -> Row:
    detected = qa["detected_answers"]
    return passage | {
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


def _made(make: Callable[..., Result], *parts: Any) -> Result | BadRow:
    """Make something of parts of a file, which may be anything."""
    try:
        return make(*parts)
    except (LookupError, TypeError, ValueError) as error:
        return BadRow(f"it is not in the release's format ({error!r})")


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
        ragged: lines with too few columns are left out, and further columns are ignored, as the hub's conversion does;
            some of QQP's lines are cut in two.
    """

    texts: Mapping[str, str | int]
    label: str | int = "label"
    classes: tuple[str, ...] = ()
    real: bool = False
    width: int | None = None
    ragged: bool = False

    def __call__(self, name: str, stream: IO[bytes]) -> RowIterator:
        lines = decoded_lines(stream)
        width, place = self.width, {column: column for column in [*self.texts.values(), self.label]}
        if width is None:
            _, first = next(lines, (1, ""))
            if isinstance(first, BadRow):
                raise MuppetError(f"{name}:1 has no column names: {first}; fetch the file again")
            header = first.split("\t")
            missing = [column for column in place if column not in header]
            if missing:
                raise MuppetError(f"{name}:1 has no column {missing[0]!r}; fetch the file again")
            width, place = len(header), {column: header.index(column) for column in place}
        for index, (number, text) in enumerate(lines):
            try:
                row = text if isinstance(text, BadRow) else self._row(text.split("\t"), width, place) | {"idx": index}
            except (BadRow, LeaveOut) as reason:
                row = reason
            yield f"{name}:{number}", row

    def _row(self, cells: list[str], width: int, place: Mapping[str | int, int]) -> Row:
        if self.ragged and len(cells) < width:
            raise LeaveOut(CUT_IN_TWO)
        if len(cells) != width and not self.ragged:
            raise BadRow(f"it has {len(cells)} columns instead of {width}")
        texts = {column: cells[place[theirs]] for column, theirs in self.texts.items()}
        return texts | {"label": self._label(cells[place[self.label]])}

    def _label(self, text: str) -> float:
        if text in self.classes:
            return self.classes.index(text)
        try:
            if not self.classes:
                return float(np.float32(text)) if self.real else int(text)
        except ValueError:
            pass
        expected = f"none of {', '.join(self.classes)}" if self.classes else "no number"
        raise BadRow(f"its label is {text!r}, {expected}")


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

    def __call__(self, name: str, stream: IO[bytes]) -> RowIterator:
        sentences, lines = 0, []
        for number, text in itertools.chain(decoded_lines(stream), [(0, "")]):
            cells = [text] if isinstance(text, BadRow) else text.split()
            if cells:
                lines.append((number, cells))
            elif lines:
                yield f"{name}:{lines[0][0]}", self._row(sentences, lines)
                sentences, lines = sentences + 1, []

    def _row(self, sentence: int, lines: list[tuple[int, list[Any]]]) -> Row | BadRow:
        for number, cells in lines:
            if isinstance(cells[0], BadRow):
                return BadRow(f"line {number}: {cells[0]}")
            if len(cells) != len(self.columns):
                return BadRow(f"line {number}: it has {len(cells)} columns instead of {len(self.columns)}")
        columns = zip(self.columns, zip(*(cells for _, cells in lines), strict=True), strict=True)
        return {"id": str(sentence)} | {column: list(cells) for column, cells in columns}


#: how the Penn Treebank's trees begin: with a bracket that has no label
_BEGINNING = re.compile(r"\(\s*(\(|$)")
_NOT_CLOSED = "opens a bracket that nothing closes"


def bracketed_trees(name: str, stream: IO[bytes]) -> RowIterator:
    """The trees of a treebank's ``.mrg`` files, ``( (S (NP (DT the) (NN end)) (. .)) )``; a row is a tree.

    ``tree`` is a bracket's label and its parts: ``("S", ("NP", ("DT", "the"), ("NN", "end")), (".", "."))``. The
    Penn Treebank's outermost brackets, which have no label, are left out.

    After a bad tree, reading goes on at the next line that begins with a bracket, and a line that begins with one
    without a label begins a tree.

    Raises:
        MuppetError: a bracket is not closed, and only its labels could tell where the next tree begins.
    """
    open_at: list[int] = []
    stack: list[list[Any]] = []
    skipping = swallowing = False
    for number, text in decoded_lines(stream):
        begins = not isinstance(text, BadRow) and text.startswith("(")
        if skipping and not begins:
            continue
        skipping = False
        if stack and begins and _BEGINNING.match(text):
            yield f"{name}:{open_at[0]}", BadRow(f"it {_NOT_CLOSED}")
            open_at, stack = [], []
        swallowing = bool(stack) and (swallowing or begins)
        try:
            for token in _tokens(text):
                if token == "(":
                    open_at.append(number)
                    stack.append([])
                elif not stack:
                    raise BadRow(f"{token!r} stands where no bracket is open")
                elif token == ")":
                    begin, tree = open_at.pop(), _bracket(stack.pop())
                    if stack:
                        stack[-1].append(tree)
                    else:
                        yield f"{name}:{begin}", {"tree": tree}
                else:
                    stack[-1].append(token)
        except BadRow as fault:
            yield f"{name}:{open_at[0] if open_at else number}", BadRow(f"line {number}: {fault}")
            open_at, stack, skipping = [], [], True
    if stack and swallowing:
        raise MuppetError(f"{name}:{open_at[0]} {_NOT_CLOSED}; fetch the file again")
    if stack:
        yield f"{name}:{open_at[0]}", BadRow(f"it {_NOT_CLOSED}")


def _tokens(text: str | BadRow) -> list[str]:
    if isinstance(text, BadRow):
        raise text
    return re.findall(r"[()]|[^\s()]+", text)


def _bracket(parts: list[Any]) -> Tree:
    """The tree of a bracket's parts. Raises BadRow if there is nothing in it, or only a label."""
    if not parts or parts == [str(parts[0])]:
        raise BadRow("a bracket is empty")
    if isinstance(parts[0], str):
        return tuple(parts)
    return parts[0] if len(parts) == 1 else ("", *parts)


def _whole_json(name: str, stream: IO[bytes]) -> Any:
    content = stream.read(_LARGEST_JSON)
    if len(content) == _LARGEST_JSON:
        raise MuppetError(f"{name} has more than {_LARGEST_JSON:,} bytes, which are not read at once; divide it")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise MuppetError(f"{name}:{number} is not UTF-8 ({error.reason}); fetch the file again") from None
    except json.JSONDecodeError as error:
        raise MuppetError(f"{name}:{error.lineno} is no JSON ({error.msg}); fetch the file again") from None
    except (ValueError, RecursionError) as error:
        raise MuppetError(f"{name} is no JSON ({error}); fetch the file again") from None
