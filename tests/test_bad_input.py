"""What a user can get wrong, or a disk: each ends in one sentence that names the file and the cure."""

import argparse
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from muppet_fairseq import plan
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.tokenizer import dictionary_sha256
from muppet_fairseq.errors import MuppetError, sentence_of
from muppet_fairseq.families.base import Layout
from muppet_fairseq.suite import Suite
from tests.toy_suite import NAMES, ROOT, write_data_bin


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_data_bin(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def data(sound, tmp_path) -> Path:
    """A data-bin of its own to damage."""
    shutil.copytree(sound, tmp_path / "data-bin")
    return tmp_path / "data-bin"


def planned(data: Path, suite: str = ",".join(NAMES), **changes) -> dict:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    args = parser.parse_args([str(data), "--suite", suite, "--max-tokens", "256", "--max-positions", "32"])
    return plan.describe(argparse.Namespace(**(vars(args) | changes)))


def sentence(call: Callable, *arguments, **keywords) -> str:
    with pytest.raises(MuppetError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rewrite(path: Path, change: Callable[[bytearray], bytearray | None]) -> None:
    """Change a file, and the size that ``dataset.json`` expects of it: to get past that first check."""
    content = bytearray(path.read_bytes())
    changed = change(content)
    path.write_bytes(content if changed is None else changed)
    meta_path = path.parents[1] / "dataset.json"
    meta = json.loads(meta_path.read_text())
    meta["files"][f"{path.parent.name}/{path.name}"]["bytes"] = path.stat().st_size
    meta_path.write_text(json.dumps(meta))


def change_meta(data: Path, name: str, **values) -> None:
    path = data / name / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_toy_data_is_sound(data):
    assert planned(data)["examples"] > 300


# -- suites ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- animals\n- chioces\n", "suite.yaml, line 2: there is no dataset 'chioces' in .* (did you mean 'choices'?)"),
        ("animals: 3\n", "suite.yaml: a suite is a list of dataset names"),
        ("animals\n", "suite.yaml: a suite is a list"),
        ("", "suite.yaml: a suite is a list"),
        ("- animals\n- [pairs\n", "suite.yaml, line 3: this is no YAML"),
        ("- animals\n- name: pairs\n  exampels: 3\n", "line 3: unknown key 'exampels' (did you mean 'examples'?)"),
        ("- name: pairs\n  examples: many\n", "line 2: 'examples' takes a positive whole number"),
        ("- name: pairs\n  examples: -1\n", "line 2: 'examples' takes a positive whole number"),
        ("- name: pairs\n  head: [a]\n", "line 2: 'head' takes a word"),
        ("- examples: 3\n", "line 1: this entry has no 'name'"),
        ("- pairs\n- animals\n- pairs\n", "line 3: 'pairs' is listed twice (first in "),
        ("- ../secret\n", "line 1: '../secret' is no dataset name"),
        ("- a/b\n", "line 1: 'a/b' is no dataset name"),
        ("- name: pairs\n  metric: acuracy\n", "line 1: 'acuracy' is no metric of the family classification"),
        ("- name: pairs\n  head: h\n- name: animals\n  head: h\n", "share the head 'h', but need different shapes"),
    ],
)
def test_suite_files(data, tmp_path, text, expected):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    said = sentence(task_of, data, path) if "share the head" in expected else sentence(planned, data, str(path))
    head, _, tail = expected.partition(".* ")
    assert head in said
    assert tail in said


def task_of(data: Path, suite: Path):
    from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig

    return MuppetTask.setup_task(MuppetTaskConfig(data=str(data), suite=str(suite), save_dir="x", restore_file="y"))


def test_suite_that_is_not_there(data):
    assert "nothing.yaml cannot be read (No such file" in sentence(planned, data, "nothing.yaml")


def test_data_bin_that_is_not_there(tmp_path):
    said = sentence(planned, tmp_path / "nowhere", "animals")
    assert "there is no folder" in said
    assert "python -m preprocess prepare" in said


def test_through_the_command_without_traceback(data, tmp_path):
    command = [sys.executable, "-m", "muppet_fairseq.cli", "plan", str(data), "--suite", "animals,pears"]
    command += ["--max-tokens", "256"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip() == (
        f"muppet: suite 'animals,pears': there is no dataset 'pears' in {data} (did you mean 'pairs'?)"
    )


# -- files ----------------------------------------------------------------------------------------------

FILES = [
    *("animals/input0/train.bin", "animals/input0/train.idx", "animals/label/train.bin", "pairs/input1/train.idx"),
    *("choices/input1/train.bin", "choices/num_choices/train.npy", "choices/answer/train.npy"),
    *("spans/offsets/train.bin", "spans/answers/train.idx", "spans/new_passage/train.npy", "spans/input1/train.bin"),
]


@pytest.mark.parametrize("name", FILES)
def test_missing_file(data, name):
    (data / name).unlink()
    said = sentence(planned, data)
    assert f"{data / name} is missing" in said
    assert "prepare the dataset again" in said


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("known", [False, True], ids=["", "size changed in dataset.json, too"])
def test_truncated_file(data, name, known):
    path = data / name
    if known:
        rewrite(path, lambda content: content[: len(content) // 2 - 3])
    else:
        path.write_bytes(path.read_bytes()[:-5])
    said = sentence(planned, data)
    assert str(path.with_suffix("")) in said or str(data / name.split("/")[0]) in said
    assert "again" in said


@pytest.mark.parametrize("stream", ["input0", "label"])
def test_index_of_another_file(data, stream):
    for split in ("train", "valid"):
        shutil.copy(data / "choices" / "input1" / f"{split}.idx", data / "animals" / stream / f"{split}.idx")
    rewrite(data / "animals" / stream / "train.idx", lambda content: None)
    said = sentence(planned, data, "animals")
    assert f"{data}/animals" in said
    assert "again" in said


@pytest.mark.parametrize("value", [-7, 2**31 - 1])
def test_wrong_sizes_in_an_index(data, value):
    def change(content: bytearray) -> None:
        # after 9 bytes of magic: version (8), type (1), number of items (8), then sizes as int32
        content[26:30] = struct.pack("<i", value)

    rewrite(data / "animals" / "input0" / "train.idx", change)
    said = sentence(planned, data, "animals")
    assert "animals/input0/train.idx does not fit train.bin; prepare the dataset again" in said


def test_huge_number_of_items_in_an_index(data):
    def change(content: bytearray) -> None:
        content[18:26] = struct.pack("<Q", 2**60)

    rewrite(data / "animals" / "input0" / "train.idx", change)
    assert "animals/input0/train.idx is truncated or no index" in sentence(planned, data, "animals")


# -- values ---------------------------------------------------------------------------------------------


def change_items(path: Path, position: int, value: int) -> None:
    """Overwrite one integer of a ``.bin`` (its type is in the index) or a ``.npy``."""
    if path.suffix == ".npy":
        values = np.load(path)
        values[position] = value
        np.save(path, values)
        return
    code = path.with_suffix(".idx").read_bytes()[17]
    dtype = {4: np.int32, 8: np.uint16, 3: np.int16, 1: np.uint8, 5: np.int64}[code]
    values = np.fromfile(path, dtype)
    values[position] = value
    values.tofile(path)


def test_label_outside_the_head(data):
    change_items(data / "animals" / "label" / "train.bin", 2 * 5, 4 + 2)
    said = sentence(planned, data, "animals")
    assert "animals/label/train: example 5 has label 2, but the head of animals has 2 classes (0 to 1)" in said


def test_more_labels_than_classes_in_dataset_json(data):
    change_meta(data, "pairs", labels=["same", "other"])
    assert "the head of pairs has 2 classes" in sentence(planned, data, "pairs")


def test_answer_that_is_no_choice(data):
    change_items(data / "choices" / "answer" / "train.npy", 3, 9)
    assert "choices/answer/train: example 3 names choice 9 of " in sentence(planned, data, "choices")


def test_number_of_choices(data):
    counts = np.load(data / "choices" / "num_choices" / "train.npy")
    change_items(data / "choices" / "num_choices" / "train.npy", 0, int(counts[0]) + 1)
    assert "choices, but input1 holds" in sentence(planned, data, "choices")
    change_items(data / "choices" / "num_choices" / "train.npy", 0, 1)
    assert "example 0 has 1 choices, at least 2 are needed" in sentence(planned, data, "choices")


def test_answer_that_its_passage_does_not_have(data):
    change_items(data / "spans" / "answers" / "train.bin", 1, 5000)
    said = sentence(planned, data, "spans")
    assert "spans/answers/train: the answer of example 0 is tokens" in said
    assert "which its passage of" in said


def test_number_of_passages(data):
    change_items(data / "spans" / "new_passage" / "train.npy", 7, 0)
    assert "passages, but input1 holds 45" in sentence(planned, data, "spans")


def test_streams_of_different_lengths(data):
    path = data / "choices" / "answer" / "train.npy"
    np.save(path, np.load(path)[:-1])
    rewrite(path, lambda content: None)
    said = sentence(planned, data, "choices")
    assert "the streams of 'train' differ in length (input0 90, answer 89, num_choices 90)" in said


def test_token_that_the_dictionary_does_not_have(data):
    change_items(data / "animals" / "input0" / "train.bin", 0, 60000)
    specs = Suite.load("animals").specs(data)
    layout = Layout(0, 1, 2, vocabulary=90, max_positions=32)
    sha256 = dictionary_sha256(data / "dict.txt")
    opened = MultitaskDataset.open(data, specs, "train", layout, sha256, training=True)
    said = sentence(opened.collater, [opened[0]])
    assert f"{data}/animals: it holds token 60000, but the dictionary has only 90 entries" in said


# -- dataset.json and the dictionary ------------------------------------------------------------------------


def test_empty_split(data):
    meta = json.loads((data / "animals" / "dataset.json").read_text())
    meta["splits"]["train"]["examples"] = 0
    change_meta(data, "animals", splits=meta["splits"])
    assert f"{data}/animals: the split 'train' is empty" in sentence(planned, data, "animals")


def test_missing_split(data):
    change_meta(data, "animals", splits={"valid": {"examples": 24}})
    assert f"{data}/animals has no split 'train'; it has valid" in sentence(planned, data, "animals")


def test_unfinished_dataset(data):
    (data / "animals" / "dataset.json").unlink()
    assert f"{data}/animals has no dataset.json, so it is unfinished" in sentence(planned, data, "animals")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "name": "animals"}'])
def test_broken_dataset_json(data, text):
    (data / "animals" / "dataset.json").write_text(text)
    said = sentence(planned, data, "animals")
    assert f"{data}/animals/dataset.json" in said
    assert "prepare the dataset again" in said


def test_unknown_family(data):
    change_meta(data, "animals", family="clasification")
    assert "unknown family 'clasification' (did you mean 'classification'?)" in sentence(planned, data, "animals")


def test_another_dictionary(data):
    lines = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").write_text("\n".join(lines[::-1]) + "\n")
    said = sentence(planned, data, "animals")
    assert f"{data}/animals was binarised with another dictionary than {data}/dict.txt" in said


def test_other_counts_are_the_same_dictionary(data):
    lines = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").write_text("".join(f"{line.split()[0]} 77\n" for line in lines))
    assert planned(data)["examples"] > 300


def test_example_larger_than_a_sub_batch(data):
    said = sentence(planned, data, "spans", max_tokens=20)
    assert "spans: example" in said
    assert "--max-tokens is 20; raise it" in said


# -- how the sentence gets out ------------------------------------------------------------------------------


def test_sentence_of_wrapped_errors():
    try:
        try:
            raise MuppetError("the sentence")
        except MuppetError:
            raise Exception("Cannot load model parameters")  # noqa: B904 - as fairseq does
    except Exception as error:
        assert sentence_of(error) == "the sentence"
    assert sentence_of(ValueError("something else")) is None


def _fail(rank: int) -> None:
    raise MuppetError(f"the sentence of worker {rank}")


def test_sentence_of_a_spawned_worker():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        torch.multiprocessing.spawn(_fail, nprocs=1)
    assert sentence_of(caught.value) == "the sentence of worker 0"
