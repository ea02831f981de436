"""What a user can get wrong, or a disk can do to data: one sentence each, with the file and the cure."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

from muppet_fairseq import errors, plan
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.tokenizer import dictionary_sha256, load_dictionary
from muppet_fairseq.errors import MuppetError, sentence_of
from muppet_fairseq.families.base import Layout
from muppet_fairseq.spec import write_dataset_json
from muppet_fairseq.suite import Suite
from preprocess.binarize import fingerprint
from tests.toy_suite import NAMES, ROOT, open_task, options, train

ALL = ",".join(NAMES)
AGAIN = "prepare the dataset again"
#: bytes of an .idx before the sizes
HEADER = 26


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the toy data-bin, to be damaged."""
    return Path(shutil.copytree(data, tmp_path / "data-bin"))


def sentence(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The one sentence that ``call`` raises."""
    with pytest.raises(MuppetError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def planned(data: Path, suite: str | Path = ALL, **changes: Any) -> dict[str, Any]:
    """``muppet plan``, which opens the training split of every dataset."""
    arguments = {
        "workers": 2,
        "update_freq": 2,
        "sub_batches": None,
        "max_tokens": 256,
        "batch_size": None,
        "max_positions": 32,
    }
    arguments |= {"window_overlap": 8, "batching": "batch_heterogeneous", "sampling": "natural"}
    arguments |= {"sampling_temperature": 2.0, "seed": 1}
    return plan.describe(argparse.Namespace(data=str(data), suite=str(suite), **(arguments | changes)))


def opened(data: Path, name: str, split: str = "train", *, training: bool | None = None) -> MultitaskDataset:
    """One dataset of the data-bin, as the task opens it."""
    dictionary = load_dictionary(data / "dict.txt")
    layout = Layout(dictionary.bos(), dictionary.pad(), dictionary.eos(), len(dictionary), 32, 8)
    specs = Suite.load(name).specs(data)
    sha256 = dictionary_sha256(data / "dict.txt")
    training = split == "train" if training is None else training
    return MultitaskDataset.open(data, specs, split, layout, sha256, training=training)


# -- damage -------------------------------------------------------------------------------------------


def change_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change ``dataset.json`` as somebody would who knows of its digest."""
    meta = json.loads((folder / "dataset.json").read_text())
    change(meta)
    write_dataset_json(folder, meta)


def seal(folder: Path) -> None:
    """Make ``dataset.json`` agree with the files that are there, so that only deeper checks see the damage."""
    change_json(folder, lambda meta: meta.update(files={name: fingerprint(folder / name) for name in meta["files"]}))


def cut(data: Path, file: str, size: int) -> None:
    """Keep the first ``size`` bytes of a file (from the end if negative) and make ``dataset.json`` agree."""
    path = data / file
    path.write_bytes(path.read_bytes()[:size])
    seal(data / file.split("/")[0])


def items_of(path: Path) -> tuple[list[np.ndarray], type]:
    stream = MMapIndexedDataset(str(path))
    return [stream[i].numpy().copy() for i in range(len(stream))], stream._index.dtype


def rewrite(data: Path, stream: str, change: Callable[[list[np.ndarray]], Any], dtype: type | None = None) -> None:
    """Change the items of an indexed stream (``dataset/stream/split``); all byte sizes stay consistent."""
    path = data / stream
    items, old_dtype = items_of(path)
    change(items)
    builder = MMapIndexedDatasetBuilder(f"{path}.bin", dtype=dtype or old_dtype)
    for item in items:
        builder.add_item(torch.as_tensor(item))
    builder.finalize(f"{path}.idx")
    seal(data / stream.split("/")[0])


def rewrite_scalars(data: Path, file: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    path = data / file
    values = np.load(path)
    changed = change(values)
    np.save(path, values if changed is None else changed)
    seal(data / file.split("/")[0])


def set_item(place: int, value: Any) -> Callable[[Any], None]:
    def change(items: Any) -> None:
        items[place] = np.array(value) if isinstance(value, Sequence) else value

    return change


def rewrite_index(path: Path, change: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    """Change the sizes (in items) and the pointers (in bytes) of an .idx of unchanged length."""
    content = path.read_bytes()
    count = struct.unpack("<Q", content[HEADER - 8 : HEADER])[0]
    sizes = np.frombuffer(content, np.int32, count, HEADER).copy()
    pointers = np.frombuffer(content, np.int64, count, HEADER + 4 * count).copy()
    change(sizes, pointers)
    path.write_bytes(content[:HEADER] + sizes.tobytes() + pointers.tobytes())
    assert path.stat().st_size == len(content)


TRAIN_FILES = (
    *(f"animals/{stream}/train.{suffix}" for stream in ("input0", "label") for suffix in ("bin", "idx")),
    *(f"spans/{stream}/train.{suffix}" for stream in ("input1", "offsets", "answers") for suffix in ("bin", "idx")),
    *("choices/answer/train.npy", "choices/num_choices/train.npy", "spans/new_passage/train.npy"),
)


def test_the_toy_data_are_sound(data, tmp_path):
    """Without damage nothing below is raised: neither for training nor for validation, nor by a rewrite."""
    assert planned(data)["examples"] > 0
    for name in NAMES:
        assert len(opened(data, name, "valid")) == 24
    copy = Path(shutil.copytree(data, tmp_path / "data-bin"))
    rewrite(copy, "spans/answers/train", lambda items: None)
    rewrite_scalars(copy, "choices/answer/train.npy", lambda values: None)
    assert planned(copy)["examples"] == planned(data)["examples"]
    assert open_task(data, ALL).heads == ["animals", "pairs", "commonsense", "mrc"]


# -- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", TRAIN_FILES)
def test_a_missing_file(copy, file):
    (copy / file).unlink()
    assert sentence(planned, copy) == f"{copy / file} is missing; {AGAIN}"
    # not even dataset.json knows of it
    name, _, rest = file.partition("/")
    change_json(copy / name, lambda meta: meta["files"].pop(rest))
    said = sentence(planned, copy)
    assert str(copy / file) in said
    assert "No such file" in said
    assert said.endswith(AGAIN)


@pytest.mark.parametrize("file", TRAIN_FILES)
def test_a_truncated_file_is_seen_by_its_size(copy, file):
    path = copy / file
    size = path.stat().st_size
    os.truncate(path, size - 1)
    said = sentence(planned, copy)
    assert said.startswith(f"{path} has {size - 1} bytes instead of {size}: ")
    assert said.endswith(AGAIN)


@pytest.mark.parametrize(
    "file",
    [
        *(f"summaries/train.source-target.{stream}" for stream in ("source.bin", "source.idx", "target.bin")),
        "counts/label/train.label",
    ],
)
def test_files_that_lie_elsewhere_are_seen_too(copy, file):
    """What ``translation`` and ``--regression-target`` read has other names than ``stream/split.suffix``."""
    name, _, rest = file.partition("/")
    size = (copy / file).stat().st_size
    os.truncate(copy / file, size - 1)
    said = sentence(opened, copy, name)
    assert said.startswith(f"{copy / file} has {size - 1} bytes instead of {size}: ")
    # the other split is whole
    assert len(opened(copy, name, "valid")) == 24
    (copy / file).unlink()
    assert sentence(opened, copy, name) == f"{copy / file} is missing; {AGAIN}"
    change_json(copy / name, lambda meta: meta["files"].pop(rest))
    assert sentence(opened, copy, name) == f"{copy / file} cannot be read (No such file or directory); {AGAIN}"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keep", [0, 5, 12, 20, HEADER, HEADER + 4, -8, -1])
@pytest.mark.parametrize("file", [file for file in TRAIN_FILES if file.endswith(".idx")])
def test_a_truncated_idx_of_recorded_size(copy, file, keep):
    """What fairseq's own class would answer with an exception, and with another one from its destructor."""
    cut(copy, file, keep)
    said = sentence(planned, copy)
    assert said == f"{copy / file} is truncated or no index of fairseq's mmap format; {AGAIN}"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("keep", "problem"), [(0, "train.bin is empty"), (-1, "does not fit"), (-8, "does not fit")])
@pytest.mark.parametrize("file", [file for file in TRAIN_FILES if file.endswith(".bin")])
def test_a_truncated_bin_of_recorded_size(copy, file, keep, problem):
    cut(copy, file, keep)
    said = sentence(planned, copy)
    assert str(copy / file).removesuffix(".bin") in said
    assert problem in said
    assert said.endswith(AGAIN)


@pytest.mark.parametrize("keep", [0, 5, 50, -1, -4])
@pytest.mark.parametrize("file", [file for file in TRAIN_FILES if file.endswith(".npy")])
def test_a_truncated_npy_of_recorded_size(copy, file, keep):
    cut(copy, file, keep)
    said = sentence(planned, copy)
    assert said.startswith(f"{copy / file} is broken (")
    assert said.endswith(AGAIN)


@pytest.mark.parametrize("change", [lambda v: v.astype(np.int64), lambda v: v.reshape(-1, 1), lambda v: v[0]])
def test_an_npy_that_is_no_list_of_int32(copy, change):
    rewrite_scalars(copy, "choices/answer/train.npy", change)
    assert sentence(planned, copy) == f"{copy}/choices/answer/train.npy holds no list of int32; {AGAIN}"


def test_an_npy_with_pickled_code_is_not_run(copy, tmp_path):
    class Malicious:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/executed",)

    np.save(copy / "choices/answer/train.npy", np.array([Malicious()]), allow_pickle=True)
    seal(copy / "choices")
    assert sentence(planned, copy).startswith(f"{copy}/choices/answer/train.npy is broken (")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("animals", "input0", "label"), ("pairs", "input0", "input1"), ("spans", "input0", "answers")],
)
def test_two_idx_of_the_same_size_are_swapped(copy, name, first, second):
    a, b = (copy / name / stream / "train.idx" for stream in (first, second))
    assert a.stat().st_size == b.stat().st_size
    swapped = a.read_bytes(), b.read_bytes()
    b.write_bytes(swapped[0])
    a.write_bytes(swapped[1])
    said = sentence(planned, copy)
    # which of the two is opened first is the family's affair
    assert any(said == f"{path} does not fit train.bin; {AGAIN}" for path in (a, b))


def test_streams_of_different_lengths(copy):
    rewrite(copy, "choices/input0/train", lambda items: items.pop())
    assert sentence(planned, copy) == (
        f"{copy}/choices: the streams of 'train' differ in length (input0 89, answer 90, num_choices 90); {AGAIN}"
    )


def test_evaluation_needs_the_raw_example_of_every_question(copy):
    rewrite(copy, "spans/raw/valid", lambda items: items.pop())
    assert "differ in length (input0 24, raw 23)" in sentence(opened, copy, "spans", "valid")


def _negative(sizes: np.ndarray, pointers: np.ndarray) -> None:
    # the sum stays, and the pointers agree with the sizes
    sizes[1] += sizes[0] + 3
    sizes[0] = -3
    pointers[1] = -3 * 2


def _huge(sizes: np.ndarray, pointers: np.ndarray) -> None:
    sizes[:] = 2**31 - 1


def _huge_pointer(sizes: np.ndarray, pointers: np.ndarray) -> None:
    pointers[7] = 2**62


def _all_later(sizes: np.ndarray, pointers: np.ndarray) -> None:
    pointers[0] = 2


@pytest.mark.parametrize("change", [_negative, _huge, _huge_pointer, _all_later])
def test_an_idx_of_the_right_length_with_absurd_sizes(copy, change):
    path = copy / "animals/input0/train.idx"
    rewrite_index(path, change)
    assert sentence(planned, copy) == f"{path} does not fit train.bin; {AGAIN}"


@pytest.mark.parametrize(("place", "value"), [(0, b"MMIDIDY"), (9, struct.pack("<Q", 2)), (17, b"\x63")])
def test_an_idx_with_another_header(copy, place, value):
    """Magic, version, and type of the items."""
    path = copy / "animals/input0/train.idx"
    content = path.read_bytes()
    path.write_bytes(content[:place] + value + content[place + len(value) :])
    assert sentence(planned, copy) == f"{path} is truncated or no index of fairseq's mmap format; {AGAIN}"


def test_an_item_without_tokens(copy):
    rewrite(copy, "animals/input0/train", lambda items: items.__setitem__(3, np.array([], dtype=np.int64)))
    assert sentence(planned, copy) == f"{copy}/animals/input0/train.idx has an item without tokens; {AGAIN}"


# -- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbol", "label"), [(6, 2), (2, -2)])
def test_a_label_outside_the_head(copy, symbol, label):
    rewrite(copy, "animals/label/train", set_item(5, [symbol, 2]))
    assert sentence(planned, copy) == (
        f"{copy}/animals/label/train: example 5 has label {label}, but the head of animals has 2 classes (0 to 1); "
        f"{AGAIN}"
    )


def test_a_label_of_two_symbols(copy):
    rewrite(copy, "animals/label/train", set_item(5, [4, 4, 2]))
    assert sentence(planned, copy) == f"{copy}/animals/label/train.idx: a label is not one symbol; {AGAIN}"


@pytest.mark.parametrize(
    "line", ["nan", "-inf", "1e39", "", "two", "1.0 2.0", "1,5", "\xe9", "\x00", pytest.param("9" * 5000, id="long")]
)
def test_a_line_that_is_no_number(copy, line):
    path = copy / "counts/label/train.label"
    lines = path.read_text().splitlines()
    lines[7] = line
    path.write_text("".join(f"{line}\n" for line in lines), encoding="latin-1")
    seal(copy / "counts")
    said = sentence(opened, copy, "counts")
    assert said.startswith(f"{path}: line 8 is ")
    assert said.endswith(f", which is no number up to 1e+09; {AGAIN}")
    assert len(said) < 300


def test_numbers_that_are_cut_off(copy):
    """A number without its last digits is one, too."""
    path = copy / "counts/label/train.label"
    for keep in (-1, -2, 0):
        cut(copy, "counts/label/train.label", keep)
        assert sentence(opened, copy, "counts") == f"{path} is cut off: its last line does not end; {AGAIN}"


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, "1.0\n"]])
def test_another_number_of_numbers_than_examples(copy, change):
    path = copy / "counts/label/train.label"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    seal(copy / "counts")
    said = sentence(opened, copy, "counts")
    assert said.startswith(f"{copy / 'counts'}: the streams of 'train' differ in length (input0 70, label ")
    assert said.endswith(AGAIN)


def test_another_number_of_summaries_than_documents(copy):
    rewrite(copy, "summaries/train.source-target.target", lambda items: items.pop())
    said = sentence(opened, copy, "summaries")
    assert said.startswith(f"{copy / 'summaries'}: the streams of 'train' differ in length (source 60, target 59)")


@pytest.mark.parametrize("too_far", [True, False])
def test_an_answer_that_is_no_choice(copy, too_far):
    choices = np.load(copy / "choices/num_choices/train.npy")[7]
    answer = choices if too_far else -1
    rewrite_scalars(copy, "choices/answer/train.npy", set_item(7, answer))
    assert sentence(planned, copy) == (
        f"{copy}/choices/answer/train: example 7 names choice {answer} of {choices} (counted from 0); {AGAIN}"
    )


def test_a_single_choice(copy):
    rewrite_scalars(copy, "choices/num_choices/train.npy", set_item(7, 1))
    said = sentence(planned, copy)
    assert said == f"{copy}/choices/num_choices/train: example 7 has 1 choices, at least 2 are needed; {AGAIN}"


def test_another_number_of_choices_than_are_stored(copy):
    counts = np.load(copy / "choices/num_choices/train.npy")
    rewrite_scalars(copy, "choices/num_choices/train.npy", set_item(7, counts[7] + 1))
    assert sentence(planned, copy) == (
        f"{copy}/choices/num_choices/train: the counts add up to {counts.sum() + 1} choices, but input1 holds "
        f"{counts.sum()}; {AGAIN}"
    )


@pytest.mark.parametrize("span", [(0, 999), (3, 2), (-1, 0)])
def test_an_answer_outside_its_passage(copy, span):
    rewrite(copy, "spans/answers/train", set_item(4, span))
    said = sentence(planned, copy)
    assert said.startswith(f"{copy}/spans/answers/train: the answer of example 4 is tokens {span[0]} to {span[1]}, ")
    assert said.endswith(AGAIN)


def test_an_answer_just_outside_its_passage(copy):
    """The end of the passage is its last word, not the </s> that is stored with it."""
    passages, _ = items_of(copy / "spans/input1/train")
    tokens = len(passages[0]) - 1
    rewrite(copy, "spans/answers/train", set_item(0, (0, tokens - 1)))
    assert len(opened(copy, "spans"))
    rewrite(copy, "spans/answers/train", set_item(0, (0, tokens)))
    assert f"which its passage of {tokens} tokens does not have" in sentence(planned, copy)


def test_half_an_answer(copy):
    def change(items: list[np.ndarray]) -> None:
        items[4], items[5] = np.array([0]), np.array([0, 0, 0])  # the sum is even

    rewrite(copy, "spans/answers/train", change)
    said = sentence(planned, copy)
    assert said == f"{copy}/spans/answers/train: example 4 has 1 numbers instead of two an answer; {AGAIN}"


def test_too_few_offsets(copy):
    rewrite(copy, "spans/offsets/train", lambda items: items.__setitem__(2, items[2][:-2]))
    tokens = len(items_of(copy / "spans/input1/train")[0][2]) - 1
    assert sentence(planned, copy) == (
        f"{copy}/spans/offsets/train: passage 2 has {tokens} tokens, but {2 * tokens - 2} offsets instead of two a "
        f"token; {AGAIN}"
    )


def test_passages_that_do_not_count_up(copy):
    rewrite_scalars(copy, "spans/new_passage/train.npy", set_item(0, 0))
    said = sentence(planned, copy)
    assert said.startswith(f"{copy}/spans/new_passage/train: it counts 44 passages, but input1 holds 45; ")
    # two wrongs that add up to the right number
    shutil.copy(copy / "spans/new_passage/train.npy", copy / "old.npy")
    rewrite_scalars(copy, "spans/new_passage/train.npy", lambda v: np.array([1, 3, -1, *v[3:]], dtype=np.int32))
    said = sentence(planned, copy)
    assert said == f"{copy}/spans/new_passage/train: example 1 has 3, neither 0 nor 1; {AGAIN}"


@pytest.mark.parametrize("token", [60000, -7])
def test_a_token_outside_the_dictionary(copy, token):
    rewrite(copy, "animals/input0/train", lambda items: items[3].__setitem__(0, token), dtype=np.int32)
    entries = len(load_dictionary(copy / "dict.txt"))
    assert sentence(opened, copy, "animals") == (
        f"{copy}/animals/input0/train holds token {token}, but the dictionary has only {entries} entries; {AGAIN}"
    )


# -- dataset.json, dict.txt ---------------------------------------------------------------------------


def test_dataset_json_is_missing_broken_or_of_another_format(copy):
    path = copy / "animals/dataset.json"
    whole = path.read_text()
    for other in (whole.replace('"format": 2', '"format": 1'), "[]"):
        path.write_text(other)
        assert sentence(planned, copy) == f"{path} is not of format 2; {AGAIN} with this version"
    for broken in (b"", whole[: len(whole) // 2].encode(), b"\xff" + whole.encode(), b"[" * 100_000, b"9" * 5000):
        path.write_bytes(broken)
        said = sentence(planned, copy)
        assert said.startswith(f"{path} cannot be read (")
        assert said.endswith(AGAIN)
    path.unlink()
    assert sentence(planned, copy) == f"{copy}/animals has no dataset.json, so it is unfinished; {AGAIN}"


def test_dataset_json_was_edited(copy):
    path = copy / "animals/dataset.json"
    path.write_text(path.read_text().replace('"metric": "f1"', '"metric": "accuracy"'))
    assert sentence(planned, copy) == (
        f"{path} is not as it was written; {AGAIN} (another metric, head or number of examples is said in a suite)"
    )
    # what makes no difference is none
    change_json(copy / "animals", lambda meta: meta.update(metric="f1"))
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    assert planned(copy)["examples"] > 0


def test_a_file_that_dataset_json_does_not_list(copy):
    change_json(copy / "animals", lambda meta: meta["files"].pop("label/train.bin"))
    path = copy / "animals/label/train.bin"
    assert sentence(planned, copy) == (
        f"{copy}/animals/dataset.json does not list {path}, which this dataset needs; prepare it again"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda meta: meta.pop("labels"), "'labels' is missing or no list"),
        (lambda meta: meta.update(labels=["a", 1]), "'labels' is no list of texts"),
        (lambda meta: meta.update(num_inputs="2"), "'num_inputs' is missing or no int"),
        (lambda meta: meta.update(num_inputs=3), "'num_inputs' is 3, neither 1 nor 2"),
        (lambda meta: meta.update(num_inputs=True), "'num_inputs' is True, neither 1 nor 2"),
        (lambda meta: meta.update(name="pairs"), "it is of the dataset 'pairs', not of animals"),
        (lambda meta: meta.update(metrics="f1"), "unknown key 'metrics' (did you mean 'metric'?)"),
        (lambda meta: meta.update(tokenizer={}), "'tokenizer' has no type or no sha256"),
        (lambda meta: meta["splits"].update({"../x": {"examples": 1}}), "'../x' is no name of a split"),
        (lambda meta: meta["splits"]["train"].update(examples=True), "'splits' does not say how many examples 'train'"),
        (
            lambda meta: meta["splits"]["train"].update(examples=2**63),
            "'splits' does not say how many examples 'train'",
        ),
        (lambda meta: meta["files"]["label/train.bin"].pop("sha256"), "'files' has no sha256 of 'label/train.bin'"),
        (lambda meta: meta.update(splits=["train"]), "'splits' is missing or no dict"),
        (lambda meta: meta.update(splits={"train": 150}), "'splits' does not say how many examples 'train' has"),
        (lambda meta: meta["splits"]["train"].pop("examples"), "'splits' does not say how many examples 'train' has"),
        (lambda meta: meta["files"].update(x={"bytes": "7"}), "'files' does not say how many bytes 'x' has"),
        (lambda meta: meta["files"].update(x=7), "'files' does not say how many bytes 'x' has"),
    ],
)
def test_dataset_json_says_something_odd(copy, change, problem):
    change_json(copy / "animals", change)
    said = sentence(planned, copy)
    assert said.startswith(f"{copy}/animals/dataset.json: {problem}")
    assert said.endswith(f"; {AGAIN}")


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../animals/label/train.bin", "label/../../pairs/label/train.bin", "label/..", "."),
        *("label//train.bin", "a/b/train.bin", ".hidden/train.bin", "label/.train.bin", "label\\train.bin", ""),
        *("label/tr\0in.bin", "train.bin\n", pytest.param("x" * 300, id="long")),
    ],
)
def test_a_file_outside_the_dataset(copy, name):
    change_json(copy / "animals", lambda meta: meta["files"].update({name: meta["files"]["label/train.bin"]}))
    said = sentence(planned, copy)
    assert said == f"{copy}/animals/dataset.json: 'files' names {name[:60]!r}, which is no file of a dataset; {AGAIN}"


@pytest.mark.parametrize("labels", [[], ["one"], [str(i) for i in range(2001)]])
def test_too_few_or_too_many_classes(copy, labels):
    change_json(copy / "animals", lambda meta: meta.update(labels=labels))
    assert sentence(planned, copy) == (
        f"{copy}/animals/dataset.json: it names {len(labels)} classes, but a dataset of the family classification has "
        f"2 to 2000; {AGAIN}"
    )


def test_another_number_of_examples_than_are_stored(copy):
    change_json(copy / "animals", lambda meta: meta["splits"]["train"].update(examples=149))
    assert sentence(planned, copy) == (
        f"{copy}/animals: the split 'train' holds 150 examples, but dataset.json says 149; {AGAIN}"
    )


def test_more_numbers_than_there_is_memory_for(copy):
    """What a number of examples makes possible is not set aside for it."""
    change_json(copy / "counts", lambda meta: meta["splits"]["train"].update(examples=2**63 - 1))
    assert sentence(opened, copy, "counts").startswith(f"{copy}/counts: the split 'train' holds 70 examples, but")


def test_a_class_that_is_no_label_of_a_tree(copy):
    labels = json.loads((copy / "trees/dataset.json").read_text())["labels"]
    for label in ("NP", "1 (S", "1000000000 (S -", "x (S -"):
        change_json(copy / "trees", lambda meta, label=label: meta.update(labels=[label, *labels[1:]]))
        said = sentence(opened, copy, "trees")
        assert said.startswith(f"{copy}/trees/dataset.json: the class {label!r} is no label of a tree, which the")


def test_an_unknown_family(copy):
    change_json(copy / "animals", lambda meta: meta.update(family="clasification"))
    assert sentence(planned, copy) == (
        f"{copy}/animals/dataset.json: unknown family 'clasification' (did you mean 'classification'?)"
    )


def test_an_empty_split_and_a_missing_one(copy):
    change_json(copy / "animals", lambda meta: meta["splits"]["train"].update(examples=0))
    assert sentence(planned, copy) == f"{copy}/animals: the split 'train' is empty; {AGAIN}"
    change_json(copy / "animals", lambda meta: meta["splits"].pop("train"))
    assert sentence(planned, copy) == f"{copy}/animals has no split 'train'; it has valid"
    said = sentence(opened, copy, "animals,pairs", "test")
    assert said == f"no dataset of the suite has a split 'test' in {copy}"


def test_the_tokenizer_of_other_data(copy):
    """It turns generated tokens into the texts that ROUGE compares."""
    assert open_task(copy, "summaries", eval_rouge=True).generator is not None
    with (copy / "tokenizer/tokenizer.json").open("a") as file:
        file.write(" ")
    assert sentence(open_task, copy, "summaries", eval_rouge=True) == (
        f"{copy}/tokenizer is not the tokenizer that {copy}/summaries was binarised with: copy that one there, or "
        "prepare the dataset again"
    )


@pytest.mark.parametrize("file", ["animals/dataset.json", "animals/input0/train.bin", "dict.txt"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(copy, file, make):
    """A pipe that nobody writes to, and a file without an end."""
    (copy / file).unlink()
    make(copy / file)
    said = sentence(planned, copy)
    assert said.startswith(str(copy / file))
    assert "is no file" in said


@pytest.mark.parametrize("file", ["animals/dataset.json", "animals/input0/train.bin", "animals/input0/train.idx"])
def test_a_file_of_absurd_length(copy, file):
    """Most of it is a hole: nobody reads through a terabyte of that to say so."""
    for size in (1 << 30, 1 << 40):
        os.truncate(copy / file, size)
        if not file.endswith(".json"):
            name = file.partition("/")[2]
            change_json(copy / "animals", lambda meta, n=name, s=size: meta["files"][n].update(bytes=s))
        assert sentence(planned, copy).startswith(f"{copy}/{file.removesuffix('.bin').removesuffix('.idx')}")


def test_a_split_that_is_empty_on_the_disk(copy):
    rewrite(copy, "animals/input0/train", lambda items: items.clear())
    path = copy / "animals/input0/train.idx"
    assert sentence(planned, copy) == f"{path} is truncated or no index of fairseq's mmap format; {AGAIN}"


def test_the_dictionary_of_other_data(copy):
    path = copy / "dict.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    assert sentence(planned, copy) == (
        f"{copy}/animals was binarised with another dictionary than {path}; prepare it again with the tokenizer "
        "of this folder"
    )


@pytest.mark.parametrize("content", [None, b"word\n", b"caf\xe9 1\n", b"word 1\nword 1\n"])
def test_no_dictionary(copy, content):
    path = copy / "dict.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = sentence(planned, copy)
    assert said.startswith(f"{path} is no fairseq dictionary (")
    assert said.endswith("it needs one 'token count' a line")


# -- suites -------------------------------------------------------------------------------------------


def test_no_data(tmp_path):
    said = sentence(planned, tmp_path / "nowhere")
    assert said == f"there is no folder {tmp_path}/nowhere; make it with 'python -m preprocess prepare'"


def test_an_unknown_dataset(data, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text("# toys\n- animals\n\n- name: chioces\n  examples: 3\n")
    known = f"there is no dataset 'chioces' in {data} (did you mean 'choices'?)"
    assert sentence(planned, data, suite) == f"{suite}, line 4: {known}"
    assert sentence(planned, data, "animals, chioces") == f"suite 'animals, chioces': {known}"
    assert sentence(planned, data, "xyz") == f"suite 'xyz': there is no dataset 'xyz' in {data}"


def test_a_suite_that_cannot_be_read(data, tmp_path):
    path = tmp_path / "suite.yaml"
    assert sentence(planned, data, path) == f"the suite {path} cannot be read (No such file or directory)"
    path.mkdir()
    assert sentence(planned, data, path) == f"the suite {path} cannot be read (Is a directory)"


KNOWN = "known are name, examples, partition, head, metric"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "a suite is a list of dataset names ('- rte'), one or more"),
        ("[]", None, "a suite is a list of dataset names ('- rte'), one or more"),
        ("animals", None, "a suite is a list of dataset names ('- rte'), one or more"),
        ("animals: 1\npairs: 2", None, "a suite is a list of dataset names ('- rte'), one or more"),
        ("- animals\n- 'pairs", 2, "this is no YAML (found unexpected end of stream)"),
        ("- animals\n---\n- pairs", 2, "this is no YAML (but found another document)"),
        ("- a\0b", None, "this is no YAML (unacceptable character #x0000: special characters are not allowed)"),
        ("- caf\udce9", None, "this is no YAML ('utf-8' codec can't decode byte 0xe9 in position 5"),
        ("[" * 1000, 1, "this is no YAML (more than 50 brackets are open)"),
        ("- animals\n- [pairs]", 2, "an entry is a dataset's name or a mapping with 'name'"),
        ("- animals\n- {examples: 3}", 2, "this entry has no 'name'"),
        ("- name: animals\n  exmaples: 3", 2, f"unknown key 'exmaples' (did you mean 'examples'?); {KNOWN}"),
        ("- name: animals\n  zzz: 3", 2, f"unknown key 'zzz'; {KNOWN}"),
        ("- name: animals\n  [a]: 3", 2, f"unknown key '[...]'; {KNOWN}"),
        ("- name: animals\n  name: pairs", 2, "'name' is given twice"),
        ("- name: animals\n  examples: many", 2, "'examples' takes a positive whole number"),
        ("- name: animals\n  examples: 0", 2, "'examples' takes a positive whole number"),
        ("- name: animals\n  examples: 1.5", 2, "'examples' takes a positive whole number"),
        ("- name: animals\n  partition: 10%", 2, "'partition' takes a positive whole number"),
        ("- name: animals\n  partition: -1", 2, "'partition' takes a positive whole number"),
        ("- name: animals\n  partition: [1]", 2, "'partition' takes a positive whole number"),
        ("- name: animals\n  head: [a]", 2, "'head' takes a word"),
        ("- name: {a: b}", 1, "'name' takes a word"),
        ("-", 1, "'' is no dataset name (letters, digits, '_' and '-' only)"),
        ("- pairs\n- ../animals", 2, "'../animals' is no dataset name (letters, digits, '_' and '-' only)"),
        ("- pairs\n- a/b", 2, "'a/b' is no dataset name (letters, digits, '_' and '-' only)"),
        ('- pairs\n- "a\\\\b"', 2, "'a\\\\b' is no dataset name (letters, digits, '_' and '-' only)"),
        ("- ..", 1, "'..' is no dataset name (letters, digits, '_' and '-' only)"),
        ("- .", 1, "'.' is no dataset name (letters, digits, '_' and '-' only)"),
        ("- name: animals\n  head: a.b", 1, "'a.b' is no head name (letters, digits, '_' and '-')"),
        ("- !!python/object/apply:os.system [exit]", 1, "an entry is a dataset's name or a mapping with 'name'"),
        (
            "- name: animals\n  metric: acuracy",
            1,
            "'acuracy' is no metric of the family classification (did you mean 'accuracy'?); it has accuracy, f1, "
            "macro_f1, matthews",
        ),
    ],
)
def test_a_suite_that_is_none(data, tmp_path, text, line, problem):
    path = tmp_path / "suite.yaml"
    path.write_text(text, errors="surrogateescape")
    place = f"{path}, line {line}" if line else str(path)
    assert sentence(planned, data, path).startswith(f"{place}: {problem}")


SHARES = ("0%", "0.0%", "100.1%", "101%", "9999%", "-5%", "1,5%", ".5%", "5 %", "'%'", "10%%", "[5%]")


@pytest.mark.parametrize("share", SHARES)
def test_a_share_that_is_none(data, tmp_path, share):
    path = tmp_path / "suite.yaml"
    path.write_text(f"- pairs\n- name: animals\n  examples: {share}\n")
    wanted = "a positive whole number, or a share above 0% and up to 100%"
    assert sentence(planned, data, path) == f"{path}, line 3: 'examples' takes {wanted}"


def test_a_dataset_twice(data, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text("- animals\n- pairs\n- name: animals\n  examples: 3\n")
    assert sentence(planned, data, path) == f"{path}, line 3: 'animals' is listed twice (first in {path}, line 1)"
    assert sentence(Suite.load, "animals,pairs,animals").startswith("suite 'animals,pairs,animals': 'animals' is ")


def test_a_head_of_two_shapes(data, tmp_path):
    path = tmp_path / "suite.yaml"
    cure = "give one of them another 'head' in the suite"
    for first, second in (("animals", "pairs"), ("animals", "spans"), ("choices", "spans")):
        path.write_text(f"- {{name: {first}, head: one}}\n- {{name: {second}, head: one}}\n")
        assert sentence(open_task, data, path) == (
            f"the datasets {first} and {second} share the head 'one', but need different shapes; {cure}"
        )


def test_a_head_whose_name_pytorch_needs(data, tmp_path):
    path = tmp_path / "suite.yaml"
    for name in ("type", "keys", "forward"):
        path.write_text(f"- {{name: animals, head: {name}}}\n")
        said = sentence(open_task, data, path)
        assert said.startswith(f"the dataset animals has a head {name!r}, a name that PyTorch's modules use")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "--workers is 0; give at least 1"),
        ({"update_freq": 0}, "--update-freq is 0; give at least 1"),
        ({"seed": -1}, "--seed is -1; give at least 0"),
        ({"max_tokens": 0}, "--max-tokens is 0; give at least 1"),
        ({"batch_size": 0}, "--batch-size is 0; give at least 1"),
        ({"max_tokens": None}, "nothing says how large a sub-batch may be; give --max-tokens or --batch-size"),
        ({"max_positions": 7}, "--max-positions is 7; give at least 8"),
        ({"window_overlap": -1}, "--window-overlap is -1; give at least 0"),
        ({"sampling": "temperature", "sampling_temperature": 0.0}, "--sampling-temperature is 0; give more than 0"),
    ],
)
def test_options_that_cannot_be(data, options, said):
    assert sentence(planned, data, **options) == said


def test_an_example_larger_than_a_sub_batch(data):
    dataset = opened(data, "choices").datasets[0]
    cost = dataset.lengths * dataset.rows
    most = int(cost.max())
    assert planned(data, "choices", max_tokens=most)["examples"] == 90
    said = sentence(planned, data, "choices", max_tokens=most - 1)
    largest = int(said.split()[2])
    assert cost[largest] == most
    assert said == (
        f"choices: example {largest} takes {most} tokens ({dataset.rows[largest]} rows of {dataset.lengths[largest]}), "
        f"but --max-tokens is {most - 1}; raise it or lower --max-positions"
    )


# -- how it reaches the user --------------------------------------------------------------------------


def _raise(_: int = 0) -> None:
    raise MuppetError("the cow is missing; bring it back")


def test_sentence_of_causes_and_contexts():
    # fairseq raises its own errors without "from": they have a context, but no cause
    fairseqs = Exception("Cannot load model parameters")
    fairseqs.__context__ = MuppetError("the cow is missing; bring it back")
    assert sentence_of(fairseqs) == "the cow is missing; bring it back"
    cause = RuntimeError("outer")
    cause.__cause__ = ValueError("inner")
    cause.__cause__.__context__ = MuppetError("deep down")
    assert sentence_of(cause) == "deep down"
    assert sentence_of(KeyError("something else")) is None
    assert sentence_of(None) is None
    loop = RuntimeError("loop")
    loop.__cause__ = ValueError("back")
    loop.__cause__.__cause__ = loop
    assert sentence_of(loop) is None


def _wrap(_: int = 0) -> None:
    try:
        _raise()
    except MuppetError as error:
        raise RuntimeError("Cannot load model parameters") from error


@pytest.mark.parametrize("function", [_raise, _wrap])
def test_sentence_of_another_process(function):
    """``fairseq-train`` on several GPUs of one machine starts its workers this way."""
    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as caught:
        torch.multiprocessing.start_processes(function, nprocs=1, start_method="fork")
    assert "Traceback" in str(caught.value)
    assert sentence_of(caught.value) == "the cow is missing; bring it back"


class Failing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        _raise()


def test_sentence_of_a_data_loaders_process():
    with pytest.raises(MuppetError) as caught:
        next(iter(torch.utils.data.DataLoader(Failing(), num_workers=1, multiprocessing_context="fork")))
    assert "Traceback" in str(caught.value)
    assert sentence_of(caught.value) == "the cow is missing; bring it back"


def test_the_hook_prints_one_sentence_and_leaves_other_errors_alone(monkeypatch, capsys):
    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error))
    errors.report_without_traceback()
    error = MuppetError("the cow is missing; bring it back")
    sys.excepthook(MuppetError, error, None)
    assert capsys.readouterr().err == "muppet: the cow is missing; bring it back\n"
    assert not others
    bug = KeyError("cow")
    sys.excepthook(KeyError, bug, None)
    assert others == [(KeyError, bug, None)]
    assert capsys.readouterr().err == ""


def start_plan(data: Path, suite: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "muppet_fairseq.cli", "plan", str(data), "--suite", suite, "--max-tokens", "256"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def expect_one_sentence(status: int, stdout: str, stderr: str, said: str) -> None:
    assert status == 1
    assert "Traceback" not in stdout + stderr
    assert [line for line in stderr.splitlines() if line.startswith("muppet: ")] == [f"muppet: {said}"]


def test_the_command_says_it_with_exit_status_1(copy, tmp_path):
    suite, index = tmp_path / "suite.yaml", copy / "animals/input0/train.idx"
    suite.write_text("- pairs\n- chioces\n")
    cut(copy, "animals/input0/train.idx", 12)
    sentences = {
        str(suite): f"{suite}, line 2: there is no dataset 'chioces' in {copy} (did you mean 'choices'?)",
        "animals": f"{index} is truncated or no index of fairseq's mmap format; {AGAIN}",
    }
    started = {name: start_plan(copy, name) for name in sentences}
    for name, process in started.items():
        stdout, stderr = process.communicate()
        expect_one_sentence(process.returncode, stdout, stderr, sentences[name])
        assert stderr == f"muppet: {sentences[name]}\n"
        assert not stdout


def test_training_says_it_when_a_data_loaders_process_finds_it(copy, tmp_path):
    """With ``--num-workers`` the error crosses a process and a thread, both of which add text to it."""

    # the smallest example is looked at before any data loader starts
    items, _ = items_of(copy / "spans/raw/valid")
    longest = max(range(len(items)), key=lambda i: len(items[i]))
    rewrite(copy, "spans/raw/valid", lambda items: items[longest].__setitem__(0, ord("[")))
    more = ("--num-workers", "1", "--no-save", "--max-update", "1")
    done = train(options(copy, tmp_path / "run", *more, suite="spans"), command=True)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("muppet: ")]
    assert line.startswith(f"muppet: {copy}/spans/raw/valid.bin: example {longest} cannot be used: it is no JSON (")
    assert "Traceback" not in done.stdout + done.stderr
