"""Every dataset of the catalog: rows in the published schema go through the real loader to data-bin and back."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muppet_fairseq.data.binarized import BinarizedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import Layout
from muppet_fairseq.spec import DatasetSpec
from preprocess.catalog import CATALOG
from preprocess.download import Fetch, Hub, Source
from preprocess.entry import Entry, HeldOut
from preprocess.originals import FirstFound, Original
from preprocess.prepare import prepare


def sources_of(entry: Entry) -> tuple[Source, ...]:
    return entry.source.sources if isinstance(entry.source, FirstFound) else (entry.source,)


def hub_of(entry: Entry) -> Hub | None:
    """The repository of the hub that an entry's rows come from, or may come from."""
    return next((source for source in sources_of(entry) if isinstance(source, Hub)), None)


FIXTURES = Path(__file__).parent / "fixtures" / "catalog"
NAMES = [name for name, entry in CATALOG.items() if hub_of(entry)]
#: datasets with the ways in which a user may have them: the hub's files, the original release's
WAYS = [(name, "hub") for name in NAMES]
WAYS += [(name, "original") for name in NAMES if any(isinstance(s, Original) for s in sources_of(CATALOG[name]))]


def fixture_of(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def mirror(entry: Entry, fixture: dict[str, Any], raw: Path) -> None:
    """Write the fixture's rows as the hub's conversion to Parquet lays them out."""
    import datasets

    features = datasets.Features.from_dict(fixture["features"])
    hub = hub_of(entry)
    for split, rows in fixture["rows"].items():
        file = raw / hub.repo / hub.config / split / "0000.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))


def release(fixture: dict[str, Any], raw: Path) -> None:
    """Write the same rows as the files of the original release: text, JSON, JSON lines, or a ZIP archive of such."""
    for path, content in fixture["original"].items():
        file = raw / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file, "w") as archive:
                for name, lines in content.items():
                    archive.writestr(name, _packed(lines, name.endswith(".gz")))
        else:
            file.write_bytes(_packed(content, file.suffix == ".gz"))


def _packed(content: Any, compress: bool) -> bytes:
    if isinstance(content, list):
        content = "".join(f"{json.dumps(line)}\n" for line in content)
    elif not isinstance(content, str):
        content = json.dumps(content)
    data = content.encode("utf-8")
    return gzip.compress(data) if compress else data


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
    raw_only = ["answers", "entities", "golds", "question_id"]
    if family == "classification":
        raw_only.append("question")  # the metric multirc counts by it
    kept = {key: value for key, value in example.items() if key not in raw_only}
    if family == "mrc":
        kept["spans"] = [[a["start"], a["start"] + len(a["text"])] for a in example["answers"]]
        return kept | {"question": kept["question"].strip()}
    return json.loads(json.dumps(kept), object_hook=lambda o: {k: _stripped(v) for k, v in o.items()})


def _stripped(value: Any) -> Any:
    if isinstance(value, list):
        return [_stripped(item) for item in value]
    return value.strip() if isinstance(value, str) else value


def prepared(entry: Entry, way: str, gpt2: Tokenizer, raw: Path, out: Path) -> dict[str, Any]:
    """Prepare an entry's fixture from the files of one of :data:`WAYS` and return its ``dataset.json``."""
    if way == "hub":
        mirror(entry, fixture_of(entry.name), raw)
    else:
        release(fixture_of(entry.name), raw)
    (meta,), failures = prepare([entry], gpt2, out, Fetch(raw / "cache", raw), max_bad_share=1.0)
    assert not failures
    return meta


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_rows_come_back_unchanged(name: str, way: str, gpt2: Tokenizer, tmp_path: Path):
    entry, fixture = CATALOG[name], fixture_of(name)
    if isinstance(entry.splits, HeldOut):
        # of a few rows, the real share would be none or all
        entry = dataclasses.replace(entry, splits=dataclasses.replace(entry.splits, valid=0.25))
    out = tmp_path / "data-bin"
    meta = prepared(entry, way, gpt2, tmp_path / "raw", out)
    assert meta["labels"] == fixture.get("labels", [])
    spec = DatasetSpec(name, entry.family, entry.metric, tuple(meta["labels"]), meta["num_inputs"])
    splits = {split: BinarizedSplit(out, spec, split, dictionary_sha256(out / "dict.txt")) for split in meta["splits"]}
    all_expected = fixture["expected"]
    if isinstance(entry.splits, HeldOut):
        all_expected = _parted(all_expected, splits["valid"])
    assert set(splits) == set(all_expected)
    for split, expected in all_expected.items():
        opened = splits[split]
        assert read_back(entry, opened, gpt2) == [comparable(example, entry.family) for example in expected]
        dropped = fixture.get("dropped", {}) | (fixture.get("original_dropped", {}) if way == "original" else {})
        assert meta["splits"][split]["dropped"] == dropped.get(split, {})
        if split != "train":
            raw = [opened.raw(index) for index in range(len(expected))]
            assert [_published(example) for example in raw] == expected
            assert {"group" in example for example in raw} == {entry.group is not None}
            if entry.family == "mrc":
                _check_what_is_scored(opened, expected)


@pytest.mark.parametrize("name", [name for name, way in WAYS if way == "original"])
def test_the_hubs_and_the_original_files_give_the_same_data(name: str, gpt2: Tokenizer, tmp_path: Path):
    contents = []
    for way in ("hub", "original"):
        prepared(CATALOG[name], way, gpt2, tmp_path / way / "raw", tmp_path / way / "data-bin")
        folder = tmp_path / way / "data-bin" / name
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        # raw examples and dataset.json say where each row stood, and when it was read
        trained_on = [file for file in files if file.parts[0] not in ("raw", "dataset.json")]
        contents.append({str(file): (folder / file).read_bytes() for file in trained_on})
    assert contents[0] == contents[1]


def _published(example: dict[str, Any]) -> dict[str, Any]:
    """A raw example without what we add: where its row stood, and the name of its group."""
    return {key: value for key, value in example.items() if key not in ("id", "group")}


def _parted(expected: dict[str, list[dict]], valid: BinarizedSplit) -> dict[str, list[dict]]:
    """Part the fixture's ``train`` as chance did: a quarter of it is ``valid``."""
    published = expected["train"]
    held = [_published(valid.raw(i)) for i in range(round(0.25 * len(published)))]
    assert all(example in published for example in held)
    return expected | {"train": [example for example in published if example not in held], "valid": held}


def _check_what_is_scored(split: BinarizedSplit, expected: list[dict[str, Any]]) -> None:
    """When validating, an answer is compared with ``golds``, where an example has those, else with its answers."""
    data = FAMILIES["mrc"].dataset(split, Layout(0, 1, 2, 50_265), training=False)
    for i, example in enumerate(expected):
        golds = example.get("golds", [answer["text"] for answer in example["answers"]])
        assert (data[i]["golds"], data[i]["entities"]) == (golds, example.get("entities", []))


@pytest.mark.parametrize("name", NAMES)
def test_entry_and_fixture_are_complete(name: str):
    entry, fixture = CATALOG[name], fixture_of(name)
    assert sum(map(len, fixture["rows"].values())) >= 5
    assert len(fixture["checked"]) > 20
    assert entry.licence
    assert entry.citation
    assert entry.published["train"] > 0
    assert set(entry.published) <= set(entry.split_names)
    if entry.family == "classification":
        assert {example["label"] for example in fixture["expected"]["train"]} == set(entry.label_names)
        published = fixture["features"].get("label", {}).get("names")
        if published:
            assert list(entry.labels) == [str(number) for number in range(len(published))]
