"""Reading comprehension datasets of pre-finetuning (MUPPET §A.1, lines 42 to 47)."""

from __future__ import annotations

from preprocess.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
