"""Regression datasets; for fine-tuning only."""

from __future__ import annotations

from preprocess.entry import Entry
from preprocess.originals import glue

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "stsb",
        "regression",
        glue("stsb"),
        {"inputs": ["sentence1", "sentence2"], "label": "label"},
        {"train": "train", "valid": "validation"},
        metric="pearson",
        published={"train": 5_749, "valid": 1_500},
        licence="CC BY-SA 4.0 for the scores; the texts under their sources' own licences",
        citation="Cer et al. 2017, SemEval-2017 Task 1: Semantic Textual Similarity, arXiv:1708.00055",
        note="Similarity from 0 to 5.",
    ),
)
