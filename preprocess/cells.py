"""Functions of a row for users' own files, whose formats write the same thing differently: what JSON lines and Parquet
have as a number or a list is text in a cell of CSV. Both give the same example.

They are like those of :mod:`preprocess.fields`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preprocess.download import Row
from preprocess.entry import BadRow, LeaveOut
from preprocess.fields import TWICE, MarkedSpans, Spans

#: how an answer may be written: the choice's number, letter or text
WAYS = ("number", "letter", "text", "number from 1")


def plain(value: Any) -> str:
    """A label or an answer in one form: ``1``, ``1.0`` and ``"1"`` are one, so are ``True`` and ``true``."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def decoded(value: Any) -> Any:
    """What a cell of text that is JSON holds; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class Cell:
    """A column's text, or its number as text. An empty one is a bad row where it is required."""

    column: str
    required: bool = True

    def __call__(self, row: Row) -> str:
        value = "" if row[self.column] is None else row[self.column]
        if not isinstance(value, str | int | float):
            raise BadRow(f"its field {self.column!r} is no text")
        if self.required and not str(value).strip():
            raise BadRow(f"its field {self.column!r} is empty")
        return str(value)


@dataclass(frozen=True)
class ClassName:
    """The class that a column says; ``names`` has it for each raw value (:func:`plain`)."""

    column: str
    names: Mapping[str, str]

    def __call__(self, row: Row) -> str:
        raw = plain(Cell(self.column)(row))
        return self.names.get(raw, raw)


@dataclass(frozen=True)
class Items:
    """A column's list of texts; a cell of text holds it as JSON or, where ``spaced``, with white space between them."""

    column: str
    spaced: bool = False

    def __call__(self, row: Row) -> list[str]:
        value = decoded(row[self.column])
        if self.spaced and isinstance(value, str) and not value.lstrip().startswith("["):
            value = value.split()
        if not isinstance(value, list):
            raise BadRow(f"its field {self.column!r} is no list (in a cell of text, write it as JSON)")
        return ["" if item is None else str(item) for item in value]


@dataclass(frozen=True)
class Tags:
    """The tags in a column's list (:class:`Items`), by their names as in :class:`ClassName`."""

    column: str
    names: Mapping[str, str]

    def __call__(self, row: Row) -> list[str]:
        tags = map(plain, Items(self.column, spaced=True)(row))
        return [self.names.get(tag, tag) for tag in tags]


@dataclass(frozen=True)
class Choices:
    """The choices: a column's list (:class:`Items`), or a column each, of which the last ones may be empty."""

    columns: tuple[str, ...]

    def __call__(self, row: Row) -> list[str]:
        if len(self.columns) == 1:
            choices = Items(self.columns[0])(row)
        else:
            choices = [Cell(column, required=False)(row) for column in self.columns]
        while choices and not choices[-1].strip():
            choices.pop()
        if not all(choice.strip() for choice in choices):
            raise BadRow("one of its choices is empty, and others follow")
        return choices


@dataclass(frozen=True)
class Answer:
    """The number (from 0) of the right choice.

    Attributes:
        column: names it by its number (from 0), letter or text.
        choices: of the question.
        way: one of :data:`WAYS`; None: whichever of the first three fits. Where several do and differ, as for the
            answer 2 among the choices 1, 2 and 3, the row is bad.
    """

    column: str
    choices: Choices
    way: str | None = None

    def __call__(self, row: Row) -> int:
        choices, answer = [plain(choice) for choice in self.choices(row)], plain(Cell(self.column)(row))
        readings = {way: self._read(way, answer, choices) for way in ([self.way] if self.way else WAYS[:3])}
        fitting = {way: number for way, number in readings.items() if 0 <= number < len(choices)}
        if not fitting:
            ways = f"{self.way} of a choice" if self.way else "number (from 0), letter or text of a choice"
            raise BadRow(f"its answer {answer[:60]!r} is no {ways}; it has {len(choices)}")
        if len(set(fitting.values())) > 1:
            raise BadRow(f"its answer {answer[:60]!r} may be a choice's {' or '.join(fitting)}; say which: 'answer_is'")
        number = next(iter(fitting.values()))
        if choices.count(choices[number]) > 1:
            raise LeaveOut(TWICE)
        return number

    @staticmethod
    def _read(way: str, answer: str, choices: list[str]) -> int:
        """The number of the choice; one that there is not, if the answer is not written in this way."""
        if way == "text":
            return choices.index(answer) if answer in choices else -1
        if way == "letter":
            return ord(answer.upper()) - ord("A") if re.fullmatch("[A-Za-z]", answer) else -1
        return int(answer) - (way == "number from 1") if re.fullmatch("[0-9]+", answer) else -1


@dataclass(frozen=True)
class Answers:
    """Gold answers in a passage.

    Attributes:
        column: a text or a list of texts, found in the passage; with their places, a list of ``{"text", "start"}`` or
            SQuAD's ``{"text": [...], "answer_start": [...]}``. A cell of text holds the lists as JSON.
        passage: the passage's column.
        may_be_none: whether a question may have no answer.
    """

    column: str
    passage: str
    may_be_none: bool

    def __call__(self, row: Row) -> list[dict[str, Any]]:
        answers = self._as_list(row[self.column])
        if not answers:
            if not self.may_be_none:
                raise BadRow("it has no answer, which only 'metric: squad_v2' allows")
            return []
        if isinstance(answers[0], str):
            return Spans("answers", "passage")({"answers": answers, "passage": Cell(self.passage)(row)})
        starts = [answer["start"] if "start" in answer else answer["answer_start"] for answer in answers]
        texts = [answer["text"] for answer in answers]
        return MarkedSpans("answers")({"answers": {"text": texts, "answer_start": starts}})

    @staticmethod
    def _as_list(value: Any) -> list[Any]:
        """Texts, or mappings of one answer each."""
        inside = decoded(value)
        if isinstance(inside, dict):
            columns = zip(inside["text"], inside["answer_start"], strict=True)
            return [{"text": text, "start": start} for text, start in columns]
        if isinstance(inside, list) and {type(item) for item in inside} in ({str}, {dict}, set()):
            return inside
        # a number, or a text like "[1]"
        text = "" if value is None else str(value)
        return [text] if text.strip() else []
