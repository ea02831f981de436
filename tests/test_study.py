"""``muppet study``: its files, the runs they mean, and real ones that are stopped, fail, or are worked on twice."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muppet_fairseq import cli, study
from muppet_fairseq.errors import MuppetError, report_without_traceback
from muppet_fairseq.report.read import read_studies
from muppet_fairseq.spec import write_dataset_json
from muppet_fairseq.study import driver, processes, run_folder
from muppet_fairseq.study.commands import Command, Machine, count_updates, evaluate_command, train_command, update_freq
from muppet_fairseq.study.expand import Plan, Run, expand
from muppet_fairseq.study.settings import read_model, read_study
from muppet_fairseq.suite import Suite, SuiteEntry
from tests.toy_suite import ROOT, options, trained

OPTIONS = {"arch": "muppet_roberta_tiny", "max-positions": 32, "window-overlap": 8, "num-workers": 0}
OPTIONS |= {"disable-validation": True, "lr": "1e-3", "log-interval": 1}
PRE_FINETUNING = {"suite": "suite.yaml", "sub-batches": 4, "max-tokens": 256, "updates": 8, "warmup": 0.1}
PRE_FINETUNING |= {"save-interval-updates": 2, "keep-interval-updates": 1, "dropout": 0.1}
FINE_TUNING = {"epochs": 1, "examples": 16, "batch-size": 8, "reuse-heads": True, "save-interval": 1000}
FINE_TUNING |= {"no-save-optimizer-state": True, "seeds": 1}
STARTS = {
    "homogeneous": {"pre_finetuning": {"batching": "batch_homogeneous"}},
    "heterogeneous": {"pre_finetuning": {"batching": "batch_heterogeneous"}},
}


def write(path: Path, content: Any) -> Path:
    """Write settings; JSON is YAML."""
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def write_files(folder: Path, changes: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Path:
    """A study of two starts and two columns, its model and its suite; ``changes`` replace parts. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "suite.yaml", ["animals", "pairs", "choices"])
    described = {"name": "toy", "encoder": "encoder", "data": "data", "options": OPTIONS}
    described |= {"pre_finetuning": PRE_FINETUNING, "fine_tuning": FINE_TUNING}
    write(folder / "model.yaml", described | (model or {}))
    columns = {"all": ["animals", "choices"]}
    content = {"starts": STARTS, "columns": columns, "scales": {"mini": {"model": "model.yaml"}}}
    return write(folder / "toy.yaml", content | (changes or {}))


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    """Write a study, :func:`write_files`, and expand it."""

    def expanded(changes: dict | None = None, model: dict | None = None, scale: str | None = None, **more: Any) -> Plan:
        return expand(read_study(write_files(tmp_path, changes, model), scale), **more)

    return expanded


def fine_tunings(plan: Plan, start: str = "base", dataset: str = "animals") -> list[Run]:
    return [t.run for t in plan.fine_tunings if t.start == start and dataset in t.run.judged.names]


# -- settings -------------------------------------------------------------------------------------------------

#: each has a place in which a setting can stand; later ones win
LAYERS = ("options", "model", "study", "scale", "dataset", "start", "variant", "grid")


@pytest.mark.parametrize("said", range(1, len(LAYERS) + 1))
def test_the_layer_that_stands_later_wins(plan, said):
    value = {layer: {"weight-decay": f"0.{number}"} for number, layer in enumerate(LAYERS[:said])}
    model = {"options": OPTIONS | value["options"], "fine_tuning": FINE_TUNING | value.get("model", {})}
    starts = {name: start | {"fine_tuning": value.get("start", {})} for name, start in STARTS.items()}
    own = value.get("study", {}) | {"datasets": {"animals": value.get("dataset", {})}}
    own["grid"] = {option: [number] for option, number in value.get("grid", {}).items()}
    changes = {"fine_tuning": own, "starts": starts, "variants": {"only": value.get("variant", {})}}
    changes["scales"] = {"mini": {"model": "model.yaml", "fine_tuning": value.get("scale", {})}}
    expanded = plan(changes, model)
    assert fine_tunings(expanded, "homogeneous")[0].options["weight-decay"] == f"0.{said - 1}"
    # the settings of a dataset are for this one
    other = [n for n, layer in enumerate(LAYERS[:said]) if layer != "dataset"][-1]
    assert fine_tunings(expanded, "homogeneous", "choices")[0].options["weight-decay"] == f"0.{other}"


@pytest.mark.parametrize("layer", ["start", "variant"])
def test_a_layer_may_have_settings_for_a_dataset(plan, layer):
    own = {"lr": 1, "datasets": {"animals": {"lr": 2}}}
    starts = {"a": {"fine_tuning": own}}
    expanded = plan({"starts": starts} if layer == "start" else {"variants": {"a": own}})
    start = "a" if layer == "start" else "homogeneous"
    assert fine_tunings(expanded, start)[0].options["lr"] == "2"
    assert fine_tunings(expanded, start, "choices")[0].options["lr"] == "1"


def test_the_command_line_wins(plan):
    starts = {"a": {"pre_finetuning": {"updates": 5}, "fine_tuning": {"seeds": 4}}}
    expanded = plan({"starts": starts, "variants": {"v": {"seeds": 5}}}, updates=3, seeds=2)
    assert expanded.pre_finetunings["a"][0].settings["updates"] == 3
    assert [run.seed for run in fine_tunings(expanded, "a")] == [1, 2]


@pytest.mark.parametrize(
    ("under", "over", "updates", "epochs"),
    [
        ({"updates": 7}, {"epochs": 2}, None, 2),
        ({"epochs": 2}, {"updates": 7}, 7, 2),
        ({"updates": 7}, {"epochs": 2, "updates": 9}, 9, 2),
    ],
)
def test_epochs_and_updates_are_two_ways_to_say_how_long(plan, under, over, updates, epochs):
    model = {"fine_tuning": {**FINE_TUNING, "epochs": 1} | under}
    settings = fine_tunings(plan({"fine_tuning": over}, model))[0].settings
    assert (settings.get("updates"), settings["epochs"]) == (updates, epochs)


def test_a_study_like_another_changes_what_it_says(tmp_path):
    scales = {"mini": {"model": "model.yaml"}, "paper": {"model": "large.yaml", "fine_tuning": {"epochs": 10}}}
    write_files(tmp_path, {"title": "One", "paper": "§1", "fine_tuning": {"epochs": 5}, "scales": scales})
    write(tmp_path / "large.yaml", {"like": "model.yaml", "name": "large", "options": {"arch": "muppet_roberta_base"}})
    other = {"like": "toy.yaml", "title": "Two", "scales": {"paper": {"fine_tuning": {"lr": 1}}, "mini": {}}}
    path = write(tmp_path / "other.yaml", other)
    read = read_study(path)  # its own first scale
    assert (read.name, read.title, read.paper, read.scale, read.model.name) == ("other", "Two", "§1", "paper", "large")
    assert (read.fine_tuning["epochs"], read.fine_tuning["lr"]) == (10, "1")
    assert list(read.starts) == list(STARTS)
    read = read_study(path, "mini")
    assert (read.model.name, read.fine_tuning["epochs"], read.fine_tuning["lr"]) == ("toy", 5, "1e-3")
    # another model's options come with it
    for chosen in (
        read_study(path, "mini", tmp_path / "large.yaml"),
        read_study(write(path, other | {"scales": {"mini": {"model": "large.yaml"}}})),
    ):
        assert (chosen.model.name, chosen.fine_tuning["arch"]) == ("large", "muppet_roberta_base")


def test_a_model_like_another_changes_what_it_says(tmp_path):
    write_files(tmp_path, model={"import": "package:x==1", "prepare": ["--seed", "2"], "columns": {"g": ["pairs"]}})
    other = {"like": "model.yaml", "encoder": "elsewhere", "options": {"lr": 3}, "fine_tuning": {"epochs": 4}}
    read = read_model(write(tmp_path / "other.yaml", other))
    assert (read.name, read.encoder, read.data, read.source) == ("toy", Path("elsewhere"), Path("data"), "package:x==1")
    assert (read.prepare, read.columns[0].datasets) == (("--seed", "2"), ("pairs",))
    assert read.pre_finetuning["lr"] == read.fine_tuning["lr"] == "3"
    assert (read.fine_tuning["epochs"], read.fine_tuning["batch-size"]) == (4, "8")


MODEL_TEXT = "name: toy\nencoder: e\ndata: d\n"
SCALES = "scales: {mini: {model: model.yaml}}\n"
#: text of the study, text of the model, line and words of the sentence
BAD = {
    "unknown key": (f"{SCALES}colums: {{}}\n", "", 2, r"unknown key 'colums' \(did you mean 'columns'\?\)"),
    "unknown key of a start": (f"{SCALES}starts:\n  a: {{pre: {{}}}}\n", "", 3, "unknown key 'pre'"),
    "unknown key of a column": (f"{SCALES}columns:\n  g: [{{name: a, datasets: [b]}}]\n", "", 3, "unknown key 'name'"),
    "unknown key of a scale": ("scales:\n  mini: {modle: x}\n", "", 2, r"'modle' \(did you mean 'model'\?\)"),
    "unknown key of a model": (SCALES, "sources: x\n", 4, "unknown key 'sources'"),
    "given twice": (f"{SCALES}title: a\ntitle: b\n", "", 3, "'title' is given twice"),
    "no mapping": (f"{SCALES}starts: [a]\n", "", 2, "here belongs a mapping"),
    "no list": (f"{SCALES}columns: {{g: a}}\n", "", 2, "here belongs a list"),
    "no value": (f"{SCALES}title: [a]\n", "", 2, "here belongs one value"),
    "no value of an option": (SCALES, "options:\n  lr: [1, 2]\n", 5, "here belongs one value"),
    "no YAML": ("scales: {\n", "", 2, "this is no YAML"),
    "compared with": (
        f"{SCALES}compared_with: bas\n",
        "",
        2,
        r"there is no start 'bas' \(did you mean 'base'\?\) to compare with",
    ),
    "figure": (f"{SCALES}figure: bar\n", "", 2, r"unknown figure 'bar' \(did you mean 'bars'\?\)"),
    "key of the other stage": (
        f"{SCALES}fine_tuning: {{workers: 2}}\n",
        "",
        2,
        "'workers' does not belong to fine_tuning",
    ),
    "no scales": ("title: a\n", "", 1, "'scales' is missing"),
    "empty scales": ("title: a\nscales:\n", "", 2, "has no scale"),
    "no model": ("scales:\n  mini: {}\n", "", 2, "the scale 'mini' has no 'model'"),
    "model without data": (SCALES, None, 1, "'data' is missing"),
    "start called base": (f"{SCALES}starts:\n  base: {{}}\n", "", 3, "'base' is the encoder itself"),
    "two columns": (f"{SCALES}columns:\n  g: [a]\n  h:\n  - a\n", "", 5, "a second column 'a'"),
    "column without datasets": (f"{SCALES}columns:\n  g: [{{label: a}}]\n", "", 3, "'datasets' is missing"),
    "empty column": (f"{SCALES}columns:\n  g: [{{label: a, datasets: []}}]\n", "", 3, "this list is empty"),
    "x": (f"{SCALES}starts:\n  a: {{x: many}}\n", "", 3, "'many' is not a number"),
    "count": (SCALES, "fine_tuning:\n  epochs: 0\n", 5, "'0' is not a positive whole number"),
    "share": (SCALES, "fine_tuning:\n  warmup: 6%\n", 5, "'6%' is not a share from 0 to 1"),
    "examples": (SCALES, "fine_tuning: {examples: 101%}\n", 4, "'101%' is no positive whole number"),
    "workers": (SCALES, "pre_finetuning: {workers: most}\n", 4, "'most' is not a positive whole number or 'all'"),
    "flag": (SCALES, "fine_tuning: {reuse-heads: yes}\n", 4, "'yes' is not true or false"),
    "head": (SCALES, "fine_tuning: {head: a b}\n", 4, "'a b' is not a head's name"),
    "set by the study": (SCALES, "pre_finetuning:\n  update-freq: 4\n", 5, "'update-freq' is set.*'sub-batches'"),
    "seed in a grid": (SCALES, "fine_tuning: {grid: {seed: [1]}}\n", 4, "'seed' is set by the study.*'seeds'"),
    "grid": (SCALES, "fine_tuning: {grid: {seeds: [1]}}\n", 4, "a grid takes options .* not 'seeds'"),
    "number in a grid": (SCALES, "fine_tuning: {grid: {epochs: [x]}}\n", 4, "'x' is not a positive whole number"),
    "empty grid": (SCALES, "fine_tuning: {grid: {lr: []}}\n", 4, "this list is empty"),
    "like itself": (f"{SCALES}like: toy.yaml\n", "", 2, "would be 'like' itself"),
    "model like itself": (SCALES, "like: ../files/model.yaml\n", 4, "would be 'like' itself"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_in_a_file_is_one_sentence_with_its_line(tmp_path, case):
    text, model, line, words = BAD[case]
    (tmp_path / "files").mkdir()
    path = write(tmp_path / "files" / "toy.yaml", text)
    write(tmp_path / "files" / "model.yaml", "name: toy\nencoder: e\n" if model is None else MODEL_TEXT + model)
    with pytest.raises(MuppetError) as error:
        read_study(path)
    assert re.search(rf"(toy|model)\.yaml, line {line}: .*({words})", str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_files_that_are_missing_are_named(tmp_path):
    path = write_files(tmp_path)
    with pytest.raises(MuppetError, match=r"has no scale 'mimi' \(did you mean 'mini'\?\); it has mini"):
        read_study(path, "mimi")
    with pytest.raises(MuppetError, match=r"the model .*none\.yaml cannot be read \(No such file"):
        read_study(path, model=tmp_path / "none.yaml")
    with pytest.raises(MuppetError, match=r"the study .*none\.yaml cannot be read"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "suite.yaml").unlink()
    with pytest.raises(MuppetError, match=r"the suite .*suite\.yaml cannot be read"):
        expand(read_study(path))


# -- runs -----------------------------------------------------------------------------------------------------

NAMES = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name != "base")
STAGES = st.fixed_dictionaries(
    {"lr": st.sampled_from(["1e-3", "2e-3"])},
    optional={"updates": st.integers(1, 4), "sub-batches": st.integers(1, 3), "dropout": st.sampled_from([0.0, 0.5])},
)


@given(first=STAGES, second=STAGES, name=NAMES, title=st.sampled_from(["One", "Two"]), seeds=st.integers(1, 3))
def test_runs_have_the_same_folder_if_and_only_if_their_settings_are_equal(
    tmp_path_factory, first, second, name, title, seeds
):
    folder = tmp_path_factory.getbasetemp() / "same"

    def runs(start: str, **changes: Any) -> tuple[Path, list[Path]]:
        expanded = expand(read_study(write_files(folder, changes).rename(folder / f"{start}.yaml")))
        return expanded.pre_finetunings[start][0].folder, [run.folder for run in fine_tunings(expanded, start)]

    one = runs("start", starts={"start": {"pre_finetuning": first}})
    two = runs(name, title=title, starts={name: {"pre_finetuning": second}}, fine_tuning={"seeds": seeds})
    assert (one[0] == two[0]) is (first == second)
    assert set(one[1]).issubset(two[1]) is (first == second)
    assert len(set(two[1])) == seeds


DECIDES = {
    "an option": {"fine_tuning": {"weight-decay": 0.1}},
    "a flag": {"fine_tuning": {"bf16": True}},
    "epochs": {"fine_tuning": {"epochs": 2}},
    "warmup": {"fine_tuning": {"warmup": 0.5}},
    "sub-batches": {"fine_tuning": {"sub-batches": 2}},
    "heads": {"fine_tuning": {"reuse-heads": False}},
    "a head": {"fine_tuning": {"head": "shared"}},
    "metric": {"fine_tuning": {"metric": "accuracy"}},
    "split": {"fine_tuning": {"split": "test"}},
    "generation": {"fine_tuning": {"generation": {"beam": 4}}},
    "examples": {"fine_tuning": {"examples": 17}},
    "training sets": {"fine_tuning": {"train": ["animals", "pairs"]}},
    "own heads": {"pre_finetuning": {"own-heads": True}},
    "pre-finetuning's option": {"pre_finetuning": {"dropout": 0.2}},
    "pre-finetuning's examples": {"pre_finetuning": {"examples": 10}},
    "encoder": {"encoder": "another"},
    "data": {"data": "other"},
}


@pytest.mark.parametrize("case", DECIDES)
def test_what_decides_a_result_decides_its_folder(plan, case):
    stages = {key: value for key, value in DECIDES[case].items() if key.endswith("tuning")}
    places = {key: value for key, value in DECIDES[case].items() if key not in stages}
    before, after = (fine_tunings(expanded, "homogeneous")[0] for expanded in (plan(), plan(stages, places)))
    assert after.key != before.key
    assert (after.after.key != before.after.key) is ("pre_finetuning" in stages or bool(places))


def test_the_suites_content_decides_and_not_its_name(plan, tmp_path):
    before = plan().pre_finetunings["homogeneous"][0]
    (tmp_path / "same.yaml").write_text("# the same\n- choices\n- pairs\n- {name: animals}\n")
    reordered = plan({"pre_finetuning": {"suite": "same.yaml"}}).pre_finetunings["homogeneous"][0]
    (tmp_path / "same.yaml").write_text("[animals, pairs, choices]")
    same = plan({"pre_finetuning": {"suite": "same.yaml"}}).pre_finetunings["homogeneous"][0]
    assert same.key == before.key != reordered.key
    assert (same.slug, before.slug) == ("same", "suite")


def test_workers_and_the_number_of_seeds_decide_nothing(plan):
    before, after = plan(), plan({"pre_finetuning": {"workers": 4}, "fine_tuning": {"seeds": 3}})
    assert after.pre_finetunings["homogeneous"][0].folder == before.pre_finetunings["homogeneous"][0].folder
    keys = [[run.key for run in fine_tunings(expanded, "homogeneous")] for expanded in (before, after)]
    assert keys[1][:1] == keys[0]
    assert len(set(keys[1])) == 3


def test_fine_tunings_take_turns_at_pre_finetunings(plan):
    expanded = plan({"pre_finetuning": {"seeds": 2}, "fine_tuning": {"seeds": 5}})
    first, second = expanded.pre_finetunings["homogeneous"]
    assert first.key != second.key
    assert [run.after.seed for run in fine_tunings(expanded, "homogeneous")] == [1, 2, 1, 2, 1]
    assert [run.after for run in fine_tunings(expanded)] == [None] * 5
    # what others wait for comes first, then seed by seed
    assert [run.seed for run in expanded.runs] == [1, 2, 1, 2] + [seed for seed in range(1, 6) for _ in range(6)]
    # and no pre-finetuning that nothing starts from
    one = plan({"pre_finetuning": {"seeds": 2}, "fine_tuning": {"seeds": 5}}, seeds=1)
    assert [run.key for runs in one.pre_finetunings.values() for run in runs] == [
        runs[0].key for runs in expanded.pre_finetunings.values() if runs
    ]
    alone = plan({"pre_finetuning": {"seeds": 2}, "columns": {}}, seeds=1)
    assert [len(runs) for runs in alone.pre_finetunings.values() if runs] == [2, 2]


def test_a_shared_run_is_done_once(plan):
    twice = dict.fromkeys(("one", "two"), STARTS["homogeneous"])
    expanded = plan({"starts": twice})
    assert len(expanded.fine_tunings) == 6
    assert [run.kind for run in expanded.runs] == ["pre_finetuning", *["fine_tuning"] * 4]


def test_variants_that_train_on_several_datasets_are_judged_on_all_columns(plan):
    variants = {"A": {"train": ["animals"]}, "A,P": {"train": ["animals", "pairs"], "head": "shared"}}
    columns = {"g": ["animals", "pairs", {"label": "both", "datasets": ["pairs", "animals"]}]}
    expanded = plan({"variants": variants, "columns": columns, "starts": {}})
    runs = [tuning.run for tuning in expanded.fine_tunings]
    assert [tuning.variant for tuning in expanded.fine_tunings] == list(variants)
    assert [run.judged.names for run in runs] == [["animals", "pairs"]] * 2
    assert [run.suite.names for run in runs] == [["animals"], ["animals", "pairs"]]
    assert {entry.head for suite in (runs[1].suite, runs[1].judged) for entry in suite.entries} == {"shared"}
    assert [run.label for run in runs] == ["A from base, seed 1", "A,P from base, seed 1"]
    alone = plan({"starts": {}, "fine_tuning": {"train": ["animals", "pairs"]}})
    assert [run.label for run in alone.runs] == ["animals+pairs from base, seed 1"]


def test_own_heads_are_one_for_each_dataset(plan):
    expanded = plan({"starts": {"own": {"pre_finetuning": {"own-heads": True}}, "family": {}}})
    suite = expanded.pre_finetunings["own"][0].suite
    assert [entry.head for entry in suite.entries] == suite.names
    heads = {start: fine_tunings(expanded, start, "choices")[0].suite.entries[0].head for start in ("own", "family")}
    assert heads == {"own": "choices", "family": None}
    assert fine_tunings(expanded, "base", "choices")[0].suite.entries[0].head is None


def test_shares_of_training_sets_are_drawn_anew_for_each_seed(plan):
    expanded = plan({"variants": {"5%": {"examples": "5%"}, "all": {"examples": "100%"}}, "fine_tuning": {"seeds": 2}})
    entries = [(e.examples, e.partition) for run in fine_tunings(expanded) for e in run.suite.entries]
    assert entries == [(Fraction(1, 20), 1), (Fraction(1, 20), 2), (Fraction(1), 1), (Fraction(1), 2)]
    assert all(entry.examples is None for run in expanded.runs for entry in run.judged.entries)


@given(share=st.integers(1, 10**11).map(lambda n: Fraction(n, 10**11)))
def test_a_suites_shares_are_read_back(tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "share.yaml"
    path.write_text(Suite([SuiteEntry("a", "", examples=share, partition=3, head="h")]).text())
    (entry,) = Suite.load(path).entries
    assert (entry.examples, entry.partition, entry.head) == (share, 3, "h")


def test_every_point_of_a_grid_is_a_run(plan):
    grid = {"lr": ["1e-3", "1e-4"], "epochs": [1, 3], "examples": ["50%"]}
    expanded = plan({"fine_tuning": {"grid": grid, "updates": 7}, "starts": {}})
    points = [t.hyper_parameters for t in expanded.fine_tunings if t.run.judged.names == ["animals"]]
    assert points == [{"lr": lr, "epochs": e, "examples": 0.5} for lr in (1e-3, 1e-4) for e in (1, 3)]
    runs = fine_tunings(expanded)
    assert [(run.options["lr"], run.settings["epochs"]) for run in runs][:2] == [("1e-3", 1), ("1e-3", 3)]
    assert not any("updates" in run.settings for run in runs)  # epochs stand later
    assert len({run.key for run in runs}) == 4


def test_a_checkpoint_replaces_a_pre_finetuning(plan):
    expanded = plan(checkpoints={"homogeneous": Path("there/muppet.pt")})
    assert expanded.pre_finetunings["homogeneous"] == []
    run = fine_tunings(expanded, "homogeneous")[0]
    assert (run.model, run.after, run.slug) == (Path("there/muppet.pt"), None, "animals/muppet")
    others = {fine_tunings(plan(), start)[0].key for start in ("base", "homogeneous")}
    moved = fine_tunings(plan(checkpoints={"homogeneous": Path("muppet.pt")}), "homogeneous")[0]
    assert len({run.key, moved.key, *others}) == 4
    assert fine_tunings(expanded, "heterogeneous")[0].after is not None
    with pytest.raises(MuppetError, match=r"no start 'homogenous' \(did you mean 'homogeneous'\?\)"):
        plan(checkpoints={"homogenous": Path("x.pt")})


def test_only_some_fine_tunings_and_what_they_start_from(plan):
    expanded = plan({"fine_tuning": {"seeds": 2}})
    chosen = study._wanted(expanded, ["choices from h*, seed 2"])
    assert [run.label for run in chosen] == [
        "pre-finetuning homogeneous",
        "pre-finetuning heterogeneous",
        "choices from homogeneous, seed 2",
        "choices from heterogeneous, seed 2",
    ]
    assert [run.label for run in study._wanted(expanded, ["animals from base*"])] == [
        "animals from base, seed 1",
        "animals from base, seed 2",
    ]
    both = study._wanted(expanded, ["animals from base*", "*seed 2"])
    assert [run.label for run in both] == ["animals from base, seed 2"]
    assert study._wanted(expanded, ["pre*"]) == []


# -- commands -------------------------------------------------------------------------------------------------

CPUS = Machine(("cpu 0", "cpu 1"), gpus=False)
GPUS = Machine(tuple(map(str, range(8))), gpus=True)


def after(words: tuple[str, ...], option: str) -> str:
    return words[words.index(f"--{option}") + 1]


def test_the_words_of_a_fine_tuning(plan):
    generation = {"beam": 4, "no-repeat-ngram-size": 3}
    settings = {"split": "test", "generation": generation, "bf16": True, "fp16": False, "metric": "accuracy"}
    expanded = plan({"fine_tuning": settings | {"warmup": 0.25}})
    run = fine_tunings(expanded, "homogeneous")[0]
    folder, start = Path("runs") / run.folder, Path("runs") / run.after.folder
    words = train_command(run, Path("runs"), GPUS, 40).words
    assert words[:2] == ("fairseq-train", "data")
    assert after(words, "finetune-from-model") == str(start / "checkpoint_last.pt")
    assert (after(words, "max-update"), after(words, "total-num-update"), after(words, "warmup-updates")) == (
        *("40", "40", "10"),
    )
    assert {"--bf16", "--reuse-heads"} <= set(words)
    assert not {"--fp16", "--cpu", "--epochs", "--warmup", "--examples"} & set(words)
    on_cpu = train_command(run, Path("runs"), CPUS, 40).words
    assert "--cpu" in on_cpu
    assert "--bf16" not in on_cpu
    judge = evaluate_command(run, Path("runs"), GPUS)
    assert judge.words[:4] == ("muppet", "evaluate", str(folder / "checkpoint_last.pt"), "data")
    assert (after(judge.words, "split"), after(judge.words, "beam"), after(judge.words, "device")) == (
        *("test", "4", "cuda"),
    )
    assert after(judge.words, "datasets") == str(folder / "judged.yaml")  # a metric of its own
    plain = evaluate_command(fine_tunings(plan())[0], Path("runs"), CPUS).words
    assert (after(plain, "datasets"), after(plain, "device")) == ("animals", "cpu")
    assert "--split" not in plain
    base = train_command(fine_tunings(expanded)[0], Path("runs"), GPUS, 40).words
    assert after(base, "finetune-from-model") == "encoder/model.pt"
    assert "--reuse-heads" not in train_command(fine_tunings(plan())[0], Path("runs"), GPUS, 40).words
    assert shlex.split(str(judge)) == list(judge.words)


@pytest.mark.parametrize(("workers", "expected"), [(1, 64), (2, 32), (3, 22), (8, 8), ("all", 8)])
def test_workers_share_the_sub_batches_of_an_update(plan, workers, expected):
    settings = {"workers": workers, "sub-batches": 64}
    run = plan({"pre_finetuning": settings}).pre_finetunings["homogeneous"][0]
    words = train_command(run, Path("runs"), GPUS, 10).words
    assert (after(words, "sub-batches"), after(words, "update-freq")) == ("64", str(expected))
    started = 8 if workers == "all" else workers
    assert GPUS.places(run) == started
    if started == 1:
        assert words[0] == "fairseq-train"
    else:
        torchrun = ("torchrun", "--standalone", "--nproc-per-node", str(started), "--no-python", "fairseq-train")
        assert words[:6] == torchrun
    assert update_freq(run, 64) == 1


def test_workers_on_cpus_are_joined_by_gloo(plan):
    run = plan({"pre_finetuning": {"workers": 2}}).pre_finetunings["homogeneous"][0]
    words = train_command(run, Path("runs"), CPUS, 10).words
    assert words[:7] == ("torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "sh", "-c")
    assert "--distributed-backend gloo" in words[7]
    fine_tuning = fine_tunings(plan({"pre_finetuning": {"workers": 2}}), "homogeneous")[0]
    assert CPUS.workers(fine_tuning) == 1
    with pytest.raises(MuppetError, match=r"homogeneous wants 3 workers, and there are 2 devices; see --devices"):
        CPUS.workers(plan({"pre_finetuning": {"workers": 3}}).pre_finetunings["homogeneous"][0])
    everything = plan({"pre_finetuning": {"workers": "all", "sub-batches": 1}}).pre_finetunings["homogeneous"][0]
    assert CPUS.workers(everything) == 1  # the other one would have nothing to do


@pytest.mark.parametrize("launched", [1, 16])
def test_a_launcher_starts_pre_finetunings_and_nothing_else(plan, launched):
    machine = Machine(("0", "1"), gpus=True, launcher=("srun", "--nodes=2"), launched=launched)
    expanded = plan({"pre_finetuning": {"workers": 3, "sub-batches": 64}})
    words = train_command(expanded.pre_finetunings["homogeneous"][0], Path("runs"), machine, 10).words
    assert words[:3] == ("srun", "--nodes=2", "fairseq-train")
    assert after(words, "update-freq") == str(64 // launched)
    assert machine.places(expanded.pre_finetunings["homogeneous"][0]) == 2
    assert train_command(fine_tunings(expanded)[0], Path("runs"), machine, 10).words[0] == "fairseq-train"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max-tokens": "many"}, "'many' is no number for 'max-tokens'"),
        ({"sampling-temperature": "hot"}, "'hot' is no number for 'sampling-temperature'"),
        ({"batching": "heterogeneous"}, r"'heterogeneous' is unknown for 'batching' \(did you mean"),
        ({"sampling": "even"}, "'even' is unknown for 'sampling'; known are natural"),
        ({"batch-size": 0}, "batch-size"),
    ],
)
def test_updates_that_cannot_be_counted_are_one_sentence(plan, data, tmp_path, settings, words):
    run = fine_tunings(plan({"fine_tuning": settings}, {"data": str(data)}))[0]
    write(tmp_path / "run.yaml", run.suite.text())
    with pytest.raises(MuppetError, match=words):
        count_updates(run, tmp_path / "run.yaml")


def test_updates_are_those_of_the_epochs(plan, data, tmp_path):
    for settings, expected in (({"epochs": 3}, 3 * 2), ({"epochs": 3, "sub-batches": 2}, 3), ({"updates": 5}, 5)):
        run = fine_tunings(plan({"fine_tuning": settings}, {"data": str(data)}))[0]
        write(tmp_path / "run.yaml", run.suite.text())
        assert count_updates(run, tmp_path / "run.yaml") == expected
    settings = {key: value for key, value in FINE_TUNING.items() if key != "epochs"}
    with pytest.raises(MuppetError, match=r"animals from base, seed 1: nothing says how long; give 'updates' or"):
        count_updates(fine_tunings(plan(model={"fine_tuning": settings}))[0], tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("cpu", (("cpu 0",), False)),
        ("cpu:2", (("cpu 0", "cpu 1"), False)),
        ("0,3", (("0", "3"), True)),
        ("cpu:none", "is no number of processes"),
        ("cpu:0", "is no number of processes"),
        ("gpu", "names no GPUs"),
        ("0,", "names no GPUs"),
    ],
)
def test_devices(devices, expected):
    args = arguments("toy.yaml", "--devices", devices)
    if isinstance(expected, str):
        with pytest.raises(MuppetError, match=expected):
            study._machine(args)
    else:
        machine = study._machine(args)
        assert (machine.devices, machine.gpus) == expected


def arguments(*words: str) -> Any:
    parser = ArgumentParser()
    study.add_arguments(parser)
    return parser.parse_args(words)


# -- real runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory) -> Path:
    """A folder with ``model.pt``."""
    return write_encoder(data, tmp_path_factory.mktemp("encoder"))


def write_encoder(data: Path, folder: Path) -> Path:
    """Train the toy encoder, for one update."""
    trained(options(data, folder, "--max-update", "1", "--disable-validation"))
    (folder / "checkpoint_last.pt").rename(folder / "model.pt")
    # which the driver imports before its first run: here, once for all drivers that these tests fork
    importlib.import_module("torch._dynamo")
    return folder


@pytest.fixture
def toy(tmp_path: Path, data: Path, encoder: Path) -> Callable[..., Path]:
    """Write a study that can be run, :func:`write_files`, and return its path."""

    def written(changes: dict | None = None, **model: Any) -> Path:
        return write_files(tmp_path, changes, {"encoder": str(encoder), "data": str(data)} | model)

    return written


def begin(study: Path, runs: Path, *words: str) -> BaseProcess:
    """Start ``muppet study`` as a session of its own, in a copy of this process, which has imported everything."""
    words = ("study", str(study), "--runs", str(runs), "--devices", "cpu:2", *words)
    process = multiprocessing.get_context("fork").Process(target=_muppet, args=(words, study.with_name("output.txt")))
    process.start()
    return process


def _muppet(words: tuple[str, ...], output: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    report_without_traceback()
    try:
        cli.main(words)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def run(study: Path, runs: Path, *words: str) -> tuple[int, str]:
    """Run ``muppet study`` to its end. Returns its status and all that it said."""
    process = begin(study, runs, *words)
    process.join(240)
    said = study.with_name("output.txt").read_text()
    assert process.exitcode is not None, said
    return process.exitcode, said


def described(runs: Path) -> dict[str, dict[str, Any]]:
    """``run.json`` of all runs, by folder."""
    paths = runs.glob("*_tuning/**/run.json"), runs.glob("pre_finetuning/*/run.json")
    return {str(p.parent.relative_to(runs)): json.loads(p.read_text()) for some in paths for p in some}


def outcome(runs: Path) -> dict[str, Any]:
    """All that must not depend on how often a study was stopped."""
    found: dict[str, Any] = {}
    for folder, run in described(runs).items():
        assert run["state"] == "finished", run
        found[folder] = (run["training"], run.get("results"))
        if run["kind"] == "pre_finetuning":
            state = torch.load(runs / folder / "checkpoint_last.pt", weights_only=False)
            found[f"{folder}: model"] = {name: value.tolist() for name, value in state["model"].items()}
    found["report"] = json.loads((runs / "report.json").read_text(), object_hook=_without_times)
    return found


def _without_times(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in ("seconds", "command")}


def living(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this did not happen"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def undisturbed(data, encoder, tmp_path_factory) -> Path:
    """The runs of the toy study, with the fine-tuned models."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = write_files(folder, model={"encoder": str(encoder), "data": str(data)})
    status, said = run(study, folder / "runs", "--keep-models")
    assert status == 0, said
    lines = re.findall(r"^  (\d+) of 8: (.*?)(?:; (.*) left.*)?$", said, flags=re.MULTILINE)
    assert said.startswith("8 runs, 0 of them finished before\n")
    assert [int(number) for number, _, _ in lines] == list(range(1, 9))
    assert all(bool(left) for _, _, left in lines[:-1])
    assert not lines[-1][2]
    assert any(re.fullmatch(r"animals from base, seed 1: f1 [0-9.]+ \([0-9]+ s\)", what) for _, what, _ in lines)
    assert any(what.startswith("pre-finetuning homogeneous: 8 updates, mean scaled loss ") for _, what, _ in lines)
    return folder / "runs"


def kill_driver(process: BaseProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)


def kill_all(process: BaseProcess) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: BaseProcess) -> None:
    """As Ctrl-C: every process of the group gets it."""
    os.killpg(process.pid, signal.SIGINT)


def is_running(runs: Path) -> bool:
    return any(run["state"] == "running" for run in described(runs).values())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends processes whose parent died only on Linux")
def test_a_study_that_is_stopped_again_and_again_ends_as_an_undisturbed_one(toy, tmp_path, undisturbed):
    study, runs = toy(), tmp_path / "runs"
    moments = random.Random(5)
    finished: dict[Path, bytes] = {}
    stopped = 0
    for stop in (kill_driver, kill_all, interrupt, kill_all):
        process = begin(study, runs)
        wait_for(lambda process=process: is_running(runs) or not process.is_alive())
        process.join(moments.uniform(0, 1.2))
        if not process.is_alive():
            break
        stop(process)
        stopped += 1
        process.join()
        wait_for(lambda process=process: not living(process.pid), 20)
        for folder in [runs / folder for folder, run in described(runs).items() if run["state"] == "finished"]:
            for file in (folder / "run.json", folder / "train.log"):
                assert finished.setdefault(file, file.read_bytes()) == file.read_bytes()
        if stop is interrupt:
            said = study.with_name("output.txt").read_text()
            assert "muppet: stopped; the same command goes on with what is in" in said
            assert "Traceback" not in said
    assert stopped >= 3  # each way once, at least
    status, said = run(study, runs)
    assert status == 0, said
    assert {file: file.read_bytes() for file in finished} == finished
    assert outcome(runs) == outcome(undisturbed)
    assert not list(runs.glob("fine_tuning/**/*.pt"))
    # all is done: nothing is done again
    before = {path: path.read_bytes() for path in runs.glob("**/*") if path.name in ("run.json", "train.log")}
    assert run(study, runs)[0] == 0
    assert {path: path.read_bytes() for path in before} == before


def test_models_are_kept_if_that_is_wanted(undisturbed):
    kept = {str(path.parent.relative_to(undisturbed)) for path in undisturbed.glob("**/checkpoint_last.pt")}
    assert kept == set(described(undisturbed))


def test_a_run_is_what_its_printed_command_does_in_a_new_process(undisturbed, tmp_path):
    folder, run = next((f, run) for f, run in described(undisturbed).items() if run["kind"] == "pre_finetuning")
    words = shlex.split(run["commands"][0])
    words[words.index("--save-dir") + 1] = str(tmp_path)
    program = [sys.executable, str(Path(sys.executable).parent / words[0]), *words[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(program, check=True, capture_output=True, env=environment, cwd=Path.cwd())
    ours, theirs = (
        torch.load(path / "checkpoint_last.pt", weights_only=False)["model"]
        for path in (undisturbed / folder, tmp_path)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["pre_finetuning", "fine_tuning"])
def test_a_training_cut_off_after_its_last_checkpoint_ends_as_if_it_had_not_been(toy, tmp_path, undisturbed, kind):
    """The moment that random ones hardly hit: the model is there, and nobody has noted that it is finished."""
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed, runs)
    cut_off = sorted(folder for folder, run in described(runs).items() if run["kind"] == kind)[:2]
    for folder in cut_off:
        path = runs / folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "commands_done": 0}))
        (runs / folder / "train.log").unlink()
    status, said = run(toy(), runs)
    assert status == 0, said
    assert "8 runs, 6 of them finished before" in said
    assert outcome(runs) == outcome(undisturbed)


def test_what_records_say_is_finished_is_not_done_again(toy, tmp_path, undisturbed):
    records, runs = tmp_path / "records", tmp_path / "runs"
    cli.main(["report", str(undisturbed), "--out", str(tmp_path / "out"), "--records", str(records)])
    complete = (records / "runs.jsonl").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(study, "_prepare")  # neither the encoder nor the data are needed
        cli.main(["study", str(toy()), "--runs", str(tmp_path / "nothing"), "--records", str(records)])
    assert not list((tmp_path / "nothing").glob("**/*.pt"))
    assert (tmp_path / "nothing/report.md").read_bytes() == (tmp_path / "out/report.md").read_bytes()
    # one is not finished: it is done, and again what it starts from, whose model is not there
    lost = next(path for path in described(undisturbed) if path.startswith("fine_tuning") and "base" not in path)
    (records / "runs.jsonl").write_text("".join(line for line in complete.splitlines(True) if lost not in line))
    status, said = run(toy(), runs, "--records", str(records))
    assert status == 0, said
    assert said.startswith("8 runs, 6 of them finished before\n")
    made = {str(path.parent.relative_to(runs)) for path in runs.glob("**/train.log")}
    assert len(made) == 2
    assert lost in made
    before, after = ({path: run["training"] for path, run in described(r).items()} for r in (undisturbed, runs))
    assert before == after
    assert [json.loads(line)["path"] for line in (records / "runs.jsonl").read_text().splitlines()] == [
        json.loads(line)["path"] for line in complete.splitlines()
    ]


def test_a_dry_run_knows_what_records_say_is_finished(toy, tmp_path, undisturbed, capsys):
    cli.main(["report", str(undisturbed), "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records")])
    capsys.readouterr()
    cli.main(
        ["study", str(toy()), "--runs", str(tmp_path / "runs"), "--dry-run", "--records", str(tmp_path / "records")]
    )
    assert capsys.readouterr().out.count(": finished\n") == 8
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_drivers_share_the_runs(toy, tmp_path, undisturbed):
    study, runs = toy(), tmp_path / "runs"
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path, tmp_path / "other", dirs_exist_ok=True, ignore=shutil.ignore_patterns("other"))
    drivers = [begin(study, runs), begin(tmp_path / "other" / "toy.yaml", runs)]
    for process in drivers:
        process.join(240)
    said = [path.read_text() for path in (tmp_path / "output.txt", tmp_path / "other" / "output.txt")]
    assert [process.exitcode for process in drivers] == [0, 0], said
    assert outcome(runs) == outcome(undisturbed)
    for folder in described(runs):
        assert (runs / folder / "train.log").read_text().count("| done training in ") == 1
    # some lines are of runs that the other one did
    done = [set(re.findall(r"of 8: (.*?, seed 1|pre-\w+ \w+): [^F]", text)) for text in said]
    assert len(done[0] | done[1]) == len(done[0]) + len(done[1]) == 8


def test_a_run_that_fails_stops_only_what_starts_from_it(toy, tmp_path):
    runs = tmp_path / "runs"
    starts = STARTS | {"heterogeneous": {"pre_finetuning": {"batching": "batch_heterogeneous", "clip-norm": "much"}}}
    changes = {"starts": starts, "fine_tuning": {"datasets": {"choices": {"max-tokens": "many"}}}}
    status, said = run(toy(changes), runs)
    assert status == 1
    (sentence,) = [line for line in said.splitlines() if line.startswith("muppet: ")]
    assert sentence.startswith("muppet: 5 of 8 runs failed (pre-finetuning heterogeneous: ")
    assert "argument --clip-norm: invalid float value: 'much' (exit status 2, see " in sentence
    assert "Traceback" not in said
    reasons = {run["name"]: run["reason"] for run in described(runs).values() if run["state"] == "failed"}
    assert "argument --clip-norm: invalid float value: 'much'" in reasons["pre-finetuning heterogeneous"]
    for name in ("base", "homogeneous"):
        reason = reasons.pop(f"choices from {name}, seed 1")
        assert reason == f"choices from {name}, seed 1: 'many' is no number for 'max-tokens'"
    assert len(reasons) == 1
    assert "it needs pre-finetuning heterogeneous, which failed" in said
    page = (runs / "report.md").read_text()
    assert "invalid float value: &#x27;much&#x27;" in page or "invalid float value: 'much'" in page
    finished = {f: run for f, run in described(runs).items() if run["state"] == "finished"}
    assert sorted(run["name"] for run in finished.values()) == [
        "animals from base, seed 1",
        "animals from homogeneous, seed 1",
        "pre-finetuning homogeneous",
    ]
    # mended, it is tried again
    status, said = run(toy({"starts": starts | {"heterogeneous": STARTS["heterogeneous"]}}), runs)
    assert status == 0, said
    assert "8 runs, 3 of them finished before" in said


def test_the_reason_is_that_of_the_last_attempt(toy, tmp_path, data):
    runs, broken = tmp_path / "runs", tmp_path / "broken"
    shutil.copytree(data, broken)
    path = broken / "animals" / "dataset.json"
    meta = path.read_text()
    without = json.loads(meta)
    del without["splits"]["valid"]
    write_dataset_json(path.parent, without)
    study = toy({"columns": {"all": ["animals"]}, "starts": {}}, data=str(broken))

    def reason() -> str:
        assert run(study, runs)[0] == 1
        (only,) = described(runs).values()
        return only["reason"]

    assert "has no split 'valid'" in reason()
    (folder,) = described(runs)
    log, checkpoint = runs / folder / "train.log", runs / folder / "checkpoint_last.pt"
    trainings = log.read_text()
    path.write_text(meta)
    checkpoint.write_bytes(b"damaged")
    assert "checkpoint_last.pt" in (said := reason())
    assert "valid" not in said + (runs / folder / "stderr.log").read_text()
    assert log.read_text() == trainings  # what is done is not done again ...
    checkpoint.unlink()
    assert run(study, runs)[0] == 0
    assert log.read_text().startswith(trainings)
    assert log.read_text() != trainings  # ... unless its model is gone


@pytest.mark.slow
def test_several_workers_train_and_none_is_left_behind(toy, tmp_path):
    changes = {"starts": {"one": STARTS["homogeneous"]}, "pre_finetuning": {"workers": 2}, "columns": {}}
    study, runs = toy(changes), tmp_path / "runs"

    def workers() -> list[bytes]:
        lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK))
        return [line for line in lines if str(runs).encode() in line and b"fairseq-train" in line]

    if sys.platform == "linux":
        process = begin(study, runs)
        wait_for(lambda: len(workers()) >= 3)  # torchrun and the workers
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        wait_for(lambda: not workers())
    status, said = run(study, runs)
    assert status == 0, said
    updates = [run["training"]["updates"] for run in described(runs).values()]
    assert updates == [8]
    assert said.splitlines()[-1].endswith("checkpoint_last.pt")  # there is nothing to report on
    assert not (runs / "studies").exists()


def test_what_cannot_begin_is_one_sentence(toy, tmp_path, undisturbed):
    runs = tmp_path / "runs"

    def sentence(study: Path, *words: str) -> str:
        status, said = run(study, runs, *words)
        assert (status, said.count("muppet: "), said.count("Traceback")) == (1, 1, 0), said
        return said.rpartition("muppet: ")[2]

    assert "there is no none/model.pt, which" in sentence(toy(encoder="none"))
    assert "there is no checkpoint none.pt" in sentence(toy(), "--checkpoint", "none.pt")
    assert "--launcher and --workers go together" in sentence(toy(), "--launcher", "srun")
    assert "wants 3 workers, and there are 2 devices" in sentence(toy({"pre_finetuning": {"workers": 3}}))
    assert not runs.exists() or not list(runs.glob("*_tuning"))
    shutil.copytree(undisturbed, runs, dirs_exist_ok=True)
    (damaged,) = list(runs.glob("fine_tuning/animals/base-*/run.json"))
    for content, words in (
        ("{", "cannot be read (Expecting"),
        ("{}", "is not of format 1"),
        ("[]", "is not of format"),
    ):
        damaged.write_text(content)
        assert f"{damaged} {words}" in (said := sentence(toy()))
        assert "delete its folder, and the run is done again" in said
    shutil.rmtree(damaged.parent)
    assert run(toy(), runs)[0] == 0


def test_a_dry_run_says_all_and_does_nothing(toy, tmp_path, capsys):
    study, runs = toy(encoder="none", data="nothing"), tmp_path / "runs"
    cli.main(["study", str(study), "--runs", str(runs), "--devices", "cpu:2", "--dry-run", "--only", "*animals*"])
    said = capsys.readouterr().out
    assert "# there is no none/model.pt, which" in said
    assert "python -m preprocess prepare --datasets animals,pairs,choices --tokenizer none --out nothing" in said
    assert said.count("\nfairseq-train nothing ") == 5
    assert said.count("\nmuppet evaluate ") == 3
    assert "\n# animals from homogeneous, seed 1: not started\n" in said
    assert "--max-update UPDATES" in said
    assert said.count("--max-update 8") == 2
    assert "# 2 pre-finetunings, 3 fine-tunings\n" in said
    assert not runs.exists()


def test_several_studies_are_done_one_after_another(toy, tmp_path, undisturbed, capsys):
    runs, first = tmp_path / "runs", toy()
    second = write(tmp_path / "second.yaml", {"like": "toy.yaml", "columns": {"all": ["animals"]}})

    def said_by(*words: str) -> str:
        cli.main(["study", str(first), str(second), "--runs", str(runs), "--devices", "cpu:2", "--dry-run", *words])
        return capsys.readouterr().out

    assert re.findall(r"# (\d pre-finetunings, \d fine-tunings)\n", said_by()) == [
        "2 pre-finetunings, 6 fine-tunings",
        "2 pre-finetunings, 3 fine-tunings",
    ]
    assert re.findall(r", (\d fine-tunings)\n", said_by("--only", "choices*")) == ["3 fine-tunings"]
    with pytest.raises(MuppetError, match=r"no fine-tuning of .* is like pre\*; one is 'animals from base, seed 1'"):
        said_by("--only", "pre*")
    with pytest.raises(MuppetError, match=r"none\.yaml cannot be read"):
        cli.main(["study", str(first), str(tmp_path / "none.yaml"), "--runs", str(runs)])
    assert not runs.exists()
    shutil.copytree(undisturbed, runs)
    cli.main(["study", str(first), str(second), "--runs", str(runs), "--devices", "cpu:2"])
    assert {path.parent.name for path in runs.glob("studies/*/study.json")} == {"toy", "second"}
    assert [s.name for s in read_studies([runs]) for tuning in s.fine_tunings if tuning.run.finished] == (
        ["second"] * 3 + ["toy"] * 6
    )


# -- parts of the driver --------------------------------------------------------------------------------------


def test_the_last_line_with_a_tag_is_read_from_a_log_that_was_cut_off(tmp_path):
    line = '2026-01-01 00:00:00 | INFO | {0} | {{"epoch": 1, "num_updates": "{1}"}}\n'
    log = tmp_path / "train.log"
    with pytest.raises(MuppetError, match=r"train\.log has no line of 'train'"):
        run_folder.last_logged(log, "train")
    log.write_text(line.format("train_inner", 3) + line.format("train_inner", 4)[:60] + line.format("train_inner", 5))
    assert run_folder.last_logged(log, "train_inner")["num_updates"] == "5"
    with pytest.raises(MuppetError, match=r"has no line of 'train'"):
        run_folder.last_logged(log, "train")


def test_parameters_are_those_of_the_last_attempt_if_its_log_has_them(tmp_path):
    end = 'x | INFO | train | {"train_loss": "0.5", "train_num_updates": "3"}\n'
    (tmp_path / "train.log").write_text(end)
    assert run_folder.training_of(tmp_path) == {"updates": 3, "loss": 0.5}
    lines = [f'x | INFO | muppet_fairseq.prompts.count | parameters | {{"prompts": {number}}}\n' for number in (1, 2)]
    (tmp_path / "train.log").write_text("".join(lines) + end)
    assert run_folder.training_of(tmp_path)["parameters"] == {"prompts": 2}


def test_the_divergence_is_that_of_the_log(tmp_path):
    end = 'x | INFO | train | {"train_loss": "0.5", "train_divergence": "9e-06", "train_num_updates": "3"}\n'
    (tmp_path / "train.log").write_text(end)
    assert run_folder.training_of(tmp_path) == {"updates": 3, "loss": 0.5, "divergence": 9e-6}


def test_a_loss_that_is_no_number_is_no_outcome(tmp_path):
    (tmp_path / "train.log").write_text('x | INFO | train | {"train_loss": "nan", "train_num_updates": "3"}\n')
    with pytest.raises(MuppetError, match=r"train\.log: the loss is nan at the end"):
        run_folder.training_of(tmp_path)


@pytest.mark.parametrize("text", ["", "[]\n", '{"results": [{"dataset": "a"}]}', "{"])
def test_an_evaluation_without_results_is_one_sentence(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(MuppetError, match=r"evaluation\.json has no results"):
        run_folder.results_of(tmp_path)


def test_a_claim_is_given_up_although_other_processes_have_inherited_it(tmp_path):
    claim = processes.lock(tmp_path)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(60,))
    process.start()
    try:
        assert processes.lock(tmp_path) is None
        processes.unlock(claim)
        again = processes.lock(tmp_path)
        assert again is not None
        processes.unlock(again)
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends processes whose parent died only on Linux")
def test_a_process_ends_when_its_driver_is_killed(tmp_path):
    def drive() -> None:
        process = processes.start(Command(("sleep", "600"), "out.log"), tmp_path, {"OMP_NUM_THREADS": "1"}, gpus=False)
        (tmp_path / "pid").write_text(f"{process.pid}\n")
        process.join()

    process = multiprocessing.get_context("fork").Process(target=drive)
    process.start()
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    wait_for(lambda: living(pid))  # its own session
    process.kill()
    process.join()
    wait_for(lambda: not living(pid))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9e3, "2.5 h")]
)
def test_durations_in_words(seconds, text):
    assert driver._duration(seconds) == text
