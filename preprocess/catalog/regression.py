"""Regression datasets; for fine-tuning only."""

from __future__ import annotations

from preprocess.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
