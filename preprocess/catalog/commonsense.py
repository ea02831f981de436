"""Commonsense datasets of pre-finetuning (MUPPET §A.1, lines 32 to 41)."""

from __future__ import annotations

from preprocess.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
