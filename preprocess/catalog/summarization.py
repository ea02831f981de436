"""Summarization datasets of pre-finetuning (MUPPET §A.1, lines 27 to 31)."""

from __future__ import annotations

from preprocess.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
