"""Every dataset of the catalog: rows in the published schema go through the real loader to data-bin and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.spec import DatasetSpec
from preprocess.__main__ import prepare
from preprocess.catalog import CATALOG
from preprocess.download import Fetch, Hub
from preprocess.entry import Entry

FIXTURES = Path(__file__).parent / "fixtures" / "catalog"
NAMES = [name for name, entry in CATALOG.items() if isinstance(entry.source, Hub)]


def fixture_of(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def mirror(entry: Entry, fixture: dict[str, Any], raw: Path) -> None:
    """Write the fixture's rows as the hub's conversion to Parquet lays them out."""
    import datasets

    features = datasets.Features.from_dict(fixture["features"])
    for split, rows in fixture["rows"].items():
        file = raw / entry.source.repo / entry.source.config / split / "0000.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))


def read_back(entry: Entry, split: BinarizedSplit, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Decode the examples of a split from its streams alone."""

    def texts(stream: str) -> list[str]:
        tokens = split.tokens(stream)
        return [tokenizer.decode(tokens[i][:-1]) for i in range(len(tokens))]

    if entry.family in ("classification", "regression"):
        columns = [texts(f"input{i}") for i in range(split.spec.num_inputs)]
        if entry.family == "classification":
            labels = [entry.label_names[label] for label in split.labels()]
        else:
            labels = split.values().tolist()
        pairs = zip(zip(*columns, strict=True), labels, strict=True)
        return [{"inputs": list(inputs), "label": label} for inputs, label in pairs]
    if entry.family == "summarization":
        pairs = zip(texts("source"), texts("target"), strict=True)
        return [{"source": source, "target": target} for source, target in pairs]
    if entry.family == "commonsense":
        ends = np.cumsum(split.scalars("num_choices"))
        choices = np.split(np.array(texts("input1"), dtype=object), ends[:-1])
        rows = zip(texts("input0"), choices, split.scalars("answer"), strict=True)
        return [{"context": c, "choices": list(own), "answer": int(answer)} for c, own, answer in rows]
    assert entry.family == "mrc"
    passages = texts("input1")
    passage_of = np.cumsum(split.scalars("new_passage")) - 1
    examples = []
    for number, question in enumerate(texts("input0")):
        passage = int(passage_of[number])
        offsets = split.ints("offsets")[passage].reshape(-1, 2)
        spans = split.ints("answers")[number].reshape(-1, 2)
        characters = [[int(offsets[first, 0]), int(offsets[last, 1])] for first, last in spans]
        examples.append({"question": question, "passage": passages[passage], "spans": characters})
    return examples


def comparable(example: dict[str, Any], family: str) -> dict[str, Any]:
    """An expected example as :func:`read_back` gives it: outer spaces are not stored, answers as characters."""
    kept = {key: value for key, value in example.items() if key not in ("answers", "entities", "question_id")}
    if family == "mrc":
        kept["spans"] = [[a["start"], a["start"] + len(a["text"])] for a in example["answers"]]
        return kept | {"question": kept["question"].strip()}
    return json.loads(json.dumps(kept), object_hook=lambda o: {k: _stripped(v) for k, v in o.items()})


def _stripped(value: Any) -> Any:
    if isinstance(value, list):
        return [_stripped(item) for item in value]
    return value.strip() if isinstance(value, str) else value


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_back_unchanged(name: str, gpt2: Tokenizer, tmp_path: Path):
    entry, fixture = CATALOG[name], fixture_of(name)
    mirror(entry, fixture, tmp_path / "raw")
    out = tmp_path / "data-bin"
    ready, failures = prepare([entry], gpt2, out, Fetch(tmp_path / "cache", tmp_path / "raw"), max_bad_share=1.0)
    assert not failures
    (meta,) = ready
    assert meta["labels"] == fixture.get("labels", [])
    spec = DatasetSpec(name, entry.family, entry.metric, tuple(meta["labels"]), meta["num_inputs"])
    assert set(meta["splits"]) == set(fixture["expected"])
    for split, expected in fixture["expected"].items():
        opened = BinarizedSplit(out, spec, split, dictionary_sha256(out / "dict.txt"))
        assert read_back(entry, opened, gpt2) == [comparable(example, entry.family) for example in expected]
        assert meta["splits"][split]["dropped"] == fixture.get("dropped", {}).get(split, {})
        if split != "train":
            raw = [opened.raw(index) for index in range(len(expected))]
            assert [{k: v for k, v in example.items() if k != "id"} for example in raw] == expected


@pytest.mark.parametrize("name", NAMES)
def test_entry_and_fixture_are_complete(name: str):
    entry, fixture = CATALOG[name], fixture_of(name)
    assert sum(map(len, fixture["rows"].values())) >= 5
    assert len(fixture["checked"]) > 20
    assert entry.licence
    assert entry.citation
    assert entry.published["train"] > 0
    assert set(entry.published) <= set(entry.splits)
