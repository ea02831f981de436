"""What a source gives: rows, and in the place of a row that cannot be used the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


class LeaveOut(Exception):
    """Raised by a field's function for a row that the dataset leaves out by design; the reason is counted."""


class BadRow(Exception):
    """Raised for a row that is not as the entry says; too many of them stop the dataset."""


#: where each row stands, and the row or why it is none
RowIterator = Iterator[tuple[str, Row | BadRow | LeaveOut]]
