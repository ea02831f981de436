"""Classification datasets of pre-finetuning (MUPPET §A.1, lines 1 to 26)."""

from __future__ import annotations

from preprocess.download import Hub
from preprocess.entry import Entry

_WANG_2018 = "Wang et al. 2018, GLUE, arXiv:1804.07461"


ENTRIES = (
    Entry(
        "rte",
        "classification",
        Hub("nyu-mll/glue", "rte"),
        {"inputs": ["sentence1", "sentence2"], "label": "label"},
        {"train": "train", "valid": "validation"},
        labels={"0": "entailment", "1": "not_entailment"},
        metric="accuracy",
        published={"train": 2_490, "valid": 277},
        licence="not stated by the authors",
        citation=_WANG_2018,
    ),
)
