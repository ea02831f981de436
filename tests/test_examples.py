"""The scripts and studies of ``examples``: every command that they print is sound, and all run to the report.

They run on toy data under the names of the paper's datasets, from toy encoders. The scripts are run as they are, with a
``muppet`` that notes what it is asked for; this process then does that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fairseq import options as fairseq_options
from torch.distributed.run import get_args_parser

from muppet_fairseq import cli, evaluate
from muppet_fairseq import study as command
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.prompts import nearest
from muppet_fairseq.study.commands import Command
from muppet_fairseq.study.expand import Plan, Run, expand
from muppet_fairseq.study.processes import start
from muppet_fairseq.study.settings import Study, read_study
from preprocess.catalog import CATALOG
from tests.toy_suite import ROOT, options, write_catalog_data_bin

EXAMPLES = ROOT / "examples"
#: what the paper's tables show, by table; ANLI's is one script for five training sets
TABLES = {
    3: ("mnli", "qqp", "rte", "qnli", "mrpc", "sst2", "squad"),
    4: ("boolq", "commonsense_qa", "hellaswag", "openbookqa", "cnn_dailymail", "gigaword", "reddit_tifu"),
    5: ("hyperpartisan", "ptb_chunking", "ptb_parsing", "ptb_pos", "arxiv", "pubmed", "big_patent"),
    6: ("anli",),
}
LOW_RESOURCE = ("cola_low_resource", "qnli_low_resource")
FINE_TUNING = [f"finetuning/{name}" for name in (*(name for names in TABLES.values() for name in names), *LOW_RESOURCE)]
PRE_FINETUNING = [f"pre_finetuning/{name}" for name in ("roberta_base", "roberta_large", "bart_base", "bart_large")]
SCRIPTS = [*PRE_FINETUNING, *FINE_TUNING]
STUDY_FILES = [EXAMPLES / "quickstart" / "quickstart.yaml", EXAMPLES / "pre_finetuning" / "pre_finetuning.yaml"]
STUDY_FILES += sorted((EXAMPLES / "mpt").glob("[!s]*.yaml"))  # the others are suites
STUDY_FILES += sorted((EXAMPLES / "finetuning").glob("*.yaml")) + sorted((EXAMPLES / "studies").glob("*.yaml"))
#: how a script names what its dataset is judged by
METRICS = {
    "accuracy": "accuracy",
    "ROUGE-1/2/L": "rouge2",
    "exact match and F1": "squad",
    "chunk F1": "chunk_f1",
    "bracket F1": "bracket_f1",
}
GPUS = ("--devices", ",".join(map(str, range(8))))
#: of several seeds, the commands differ in nothing else
DRY = ("--dry-run", "--seeds", "1", *GPUS)


def scales_of(path: Path) -> list[str]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return list(content["scales"])


SCALES = [(path, scale) for path in STUDY_FILES for scale in scales_of(path)]
of_every_scale = pytest.mark.parametrize(("path", "scale"), SCALES, ids=[f"{p.stem}-{scale}" for p, scale in SCALES])
STUDIES = [path.stem for path in STUDY_FILES if path.parent.name == "studies"]


# what the scripts ask for


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Runs a script with these arguments and environment; returns the words that it starts ``muppet`` with."""
    folder = tmp_path_factory.mktemp("bin")
    programs = {"muppet": f'printf "%s\\0" "$@" > {folder}/words', "scontrol": 'echo "$3-first"; echo "$3-second"'}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"

    def ask(script: str, *arguments: str, **environment: str) -> list[str]:
        program = [str(EXAMPLES / f"{script}.sh"), *arguments]
        subprocess.run(program, env={"PATH": path, **environment}, cwd=folder, check=True)
        return (folder / "words").read_text().split("\0")[:-1]

    return ask


def comment_of(script: str) -> str:
    text = (EXAMPLES / f"{script}.sh").read_text(encoding="utf-8")
    return " ".join(line.removeprefix("# ") for line in text.splitlines()[1:] if line.startswith("# "))


def test_every_dataset_of_the_tables_has_a_script():
    there = {path.stem for path in (EXAMPLES / "finetuning").glob("*.sh")}
    assert there == {script.partition("/")[2] for script in FINE_TUNING} | {"fine_tune"}
    there = {path.stem for path in (EXAMPLES / "pre_finetuning").glob("*.sh")}
    assert there == {script.partition("/")[2] for script in PRE_FINETUNING} | {"pre_finetune", "slurm"}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_columns_of_the_papers(table: int):
    path = EXAMPLES / "finetuning" / f"table{table}.yaml"
    columns = {
        scale: [name for c in read_study(path, scale).columns for name in c.datasets] for scale in scales_of(path)
    }
    if table == 6:
        rounds = ["anli_r1", "anli_r2", "anli_r3"]
        assert columns == {"roberta": rounds * 2, "bart": rounds * 2}
        return
    assert columns["bart"] == list(TABLES[table])
    without = [name for name in TABLES[table] if CATALOG[name].family != "summarization"]
    assert columns["roberta"] == without


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in (3, 4, 5) for name in TABLES[table]], ids=lambda value: str(value)
)
def test_a_script_says_what_the_catalog_does(table: int, name: str, asked: Callable[..., list[str]]):
    comment = comment_of(f"finetuning/{name}")
    said = re.match(r".+ \(Table (\d)\): ([\d,]+) training examples, (.+?)\. The paper, base model -> ", comment)
    assert said, comment
    words = asked(f"finetuning/{name}")
    runs = [run for run in runs_of(words) if run.judged.names == [name]]
    assert Path(words[1]).stem == f"table{said[1]}" == f"table{table}"
    assert int(said[2].replace(",", "")) == CATALOG[name].published["train"]
    assert {run.settings.get("metric", CATALOG[name].metric) for run in runs} == {METRICS[said[3]]}


def test_the_script_of_table_6_says_how_large_its_training_sets_are():
    path = EXAMPLES / "finetuning" / "table6.yaml"
    variants = read_study(path, "roberta").variants
    sizes = [sum(CATALOG[name].published["train"] for name in variant["train"]) for variant in variants.values()]
    said = re.search(r"five training sets of ([\d.]+) to ([\d.]+) million examples", comment_of("finetuning/anli"))
    assert [f"{size / 1e6:.1f}" for size in (sizes[0], sizes[-1])] == list(said.groups())
    assert sizes == sorted(sizes)
    assert len(sizes) == 5
    assert all(f"{name} " in comment_of("finetuning/anli") for name in variants)


@pytest.mark.parametrize("script", LOW_RESOURCE)
def test_a_script_of_figure_3_has_nine_shares(script: str, asked: Callable[..., list[str]]):
    assert "on 9 shares of its training set, from 10% to all" in comment_of(f"finetuning/{script}")
    tunings = expand(study_of(asked(f"finetuning/{script}"))).fine_tunings
    shares = {tuning.variant: tuning.run.suite.entries[0].examples for tuning in tunings}
    assert len(shares) == 9
    steps = [float(share) for share in shares.values()]
    assert steps == pytest.approx([0.1 + 0.9 * step / 8 for step in range(9)])
    assert [float(name.rstrip("%")) for name in shares] == pytest.approx([100 * step for step in steps], abs=0.51)


def test_what_low_resource_fine_tunes_has_been_seen_by_the_suite_of_all_only():
    for scale in scales_of(EXAMPLES / "studies" / "low_resource.yaml"):
        plan = expand(read_study(EXAMPLES / "studies" / "low_resource.yaml", scale))
        judged = {name for column in plan.study.columns for name in column.datasets}
        seen = {start for start, runs in plan.pre_finetunings.items() for run in runs if judged & {*run.suite.names}}
        assert seen == ({"all_datasets"} if scale == "paper" else set())


def test_a_script_takes_another_model_and_a_checkpoint(asked: Callable[..., list[str]], tmp_path: Path):
    words = asked("finetuning/rte", "--seeds", "1", MODEL="bart_large", CHECKPOINT="muppet.pt")
    assert words[words.index("--model") + 1].endswith("/models/bart_large.yaml")
    assert words[words.index("--scale") + 1] == "bart"
    assert words[words.index("--checkpoint") + 1] == "muppet.pt"
    assert words[-2:] == ["--seeds", "1"]
    (tmp_path / "mine.yaml").touch()
    words = asked("finetuning/rte", MODEL=str(tmp_path / "mine.yaml"), SCALE="roberta")
    assert words[words.index("--model") + 1] == str(tmp_path / "mine.yaml")
    assert words[words.index("--scale") + 1] == "roberta"


@pytest.mark.parametrize("nodes", range(1, 9))
def test_slurm(nodes: int, asked: Callable[..., list[str]], capsys: pytest.CaptureFixture):
    job = {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node"}
    job |= {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(ROOT)}
    words = asked("pre_finetuning/slurm", "bart_large", "--updates", "100", "--dry-run", *GPUS, **job)
    (line,) = [line for line in said_by(words, capsys) if "fairseq-train" in line]
    launched = shlex.split(line)
    assert launched[:2] == ["srun", "torchrun"]
    torchrun = get_args_parser().parse_args(launched[2:])
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.no_python) == (str(nodes), "8", True)
    assert (torchrun.rdzv_endpoint, torchrun.rdzv_id, torchrun.rdzv_backend) == ("node-first:29500", "17", "c10d")
    assert torchrun.max_restarts == 3
    assert torchrun.training_script == "fairseq-train"
    training = parsed(launched)
    assert training.sub_batches == 64
    # all 64 have a place, and no round of an update is empty
    assert 64 <= training.update_freq[0] * 8 * nodes < 64 + 8 * nodes


def test_slurm_needs_a_model(asked: Callable[..., list[str]], capfd: pytest.CaptureFixture):
    with pytest.raises(subprocess.CalledProcessError):
        asked("pre_finetuning/slurm", SLURM_JOB_NUM_NODES="1", SLURM_JOB_ID="17", SLURM_JOB_NODELIST="node")
    assert "name a model of examples/models" in capfd.readouterr().err


# what is printed where there are no data


def study_of(words: list[str]) -> Study:
    """The study that ``muppet`` reads when it is asked for this."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert words[0] == "study"
    args = parser.parse_args(words[1:])
    (path,) = args.study
    return read_study(path, args.scale, args.model)


def runs_of(words: list[str]) -> list[Run]:
    return expand(study_of(words)).runs


def said_by(words: Iterable[str], capsys: pytest.CaptureFixture) -> list[str]:
    capsys.readouterr()
    cli.main(list(words))
    return capsys.readouterr().out.splitlines()


#: options with their values that fairseq's parser has taken, each with the architecture and criterion that it was with
_TAKEN: set[tuple[str, ...]] = set()


def parsed(words: list[str]) -> argparse.Namespace:
    """What fairseq makes of a command line; ends the test where it makes nothing of it."""
    arguments = words[words.index("fairseq-train") + 1 :]
    try:
        return fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), arguments)
    except SystemExit:
        pytest.fail(f"fairseq-train does not take {shlex.join(arguments)}")


def check_training(words: list[str]) -> None:
    """Parse a training's command line, unless all of it was in others: a parser takes a tenth of a second to make."""
    words = [re.sub(r"([\d.]+\*)?UPDATES", "100", word) for word in words]
    values: dict[str, list[str]] = defaultdict(list)
    for word in words[words.index("fairseq-train") + 2 :]:
        if word.startswith("--"):
            option = word
        values[option].append(word)
    for option in ("--suite", "--save-dir", "--finetune-from-model", "--backbone", "--teachers"):
        values.pop(option, None)
    kinds = (*values["--arch"], *values["--criterion"])
    new = {(*kinds, *value) for value in values.values()} - _TAKEN
    if new:
        parsed(words)
        _TAKEN.update(new)


def check_evaluation(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    args = parser.parse_args(words[2 : words.index(">")])
    assert args.json
    assert args.example_scores


def check_nearest(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    nearest.add_arguments(parser)
    assert len(parser.parse_args(words[2 : words.index(">")]).candidates) > 1


def check_lines(lines: list[str]) -> None:
    """Check a dry run: its encoder is missing, its datasets are known, its command lines parse."""
    assert re.match(r"export OMP_NUM_THREADS=\d+ MKL_NUM_THREADS=\d+$", lines[0])
    assert re.match(r"# there is no |muppet import-hf ", lines[1])
    prepare = shlex.split(lines[2])
    assert prepare[:4] == ["python", "-m", "preprocess", "prepare"]
    assert {*prepare[prepare.index("--datasets") + 1].split(",")} <= CATALOG.keys()
    commands = [line for line in lines[3:] if line and line[0] != "#"]
    # those that differ in paths or seeds only are alike
    alike = {re.sub(r"\S*/\S*|--seed \d+", "", line): line for line in commands}
    kinds = defaultdict(int)
    for words in map(shlex.split, alike.values()):
        kind = "train" if "fairseq-train" in words else words[1]
        kinds[kind] += 1
        {"train": check_training, "evaluate": check_evaluation, "nearest": check_nearest}[kind](words)
    before, tunings = map(int, re.search(r"# (\d+) pre-finetunings, (\d+) fine-tunings", "\n".join(lines)).groups())
    assert len(commands) == before + 2 * tunings + sum(line.startswith("muppet nearest ") for line in commands)
    assert kinds["train"] > 0
    assert (kinds["evaluate"] > 0) == (tunings > 0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_prints_its_commands(
    script: str, asked: Callable[..., list[str]], capsys: pytest.CaptureFixture, monkeypatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    lines = said_by(asked(script, *DRY), capsys)
    check_lines(lines)
    assert list(tmp_path.iterdir()) == []


@of_every_scale
def test_a_study_prints_its_commands(
    path: Path, scale: str, capsys: pytest.CaptureFixture, monkeypatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    lines = said_by(["study", str(path), "--scale", scale, *DRY], capsys)
    check_lines(lines)
    assert list(tmp_path.iterdir()) == []


@of_every_scale
def test_a_study_fits_its_datasets(path: Path, scale: str):
    """Splits and metrics are there, heads are shared by what has the same classes, and only BART writes."""
    for run in expand(read_study(path, scale)).runs:
        heads = defaultdict(set)
        for entry in run.judged.entries:
            dataset = CATALOG[entry.name]
            assert run.settings.get("split", "valid") in {*dataset.split_names} - {"train"}, run.label
            assert entry.metric in (None, *FAMILIES[dataset.family].metric_names), run.label
        for entry in (*run.suite.entries, *run.judged.entries):
            dataset = CATALOG[entry.name]
            heads[entry.head or entry.name].add((dataset.family, *dataset.label_names))
            assert dataset.family != "summarization" or "bart" in run.options["arch"], run.label
        assert {head: kinds for head, kinds in heads.items() if len(kinds) > 1} == {}, run.label


# all of it, for real

BASES = {"roberta": "roberta_base", "bart": "bart_large"}
TOY_MODEL = """
like: {base}
name: toy {kind}
encoder: {encoder}
data: {data}
options: {{arch: muppet_{kind}_tiny, max-positions: 32, window-overlap: 8, num-workers: 0}}
pre_finetuning: {{workers: 1, sub-batches: 4, max-tokens: 256, disable-validation: true, updates: 3, lr: 3e-3}}
fine_tuning:
  grid: {{}}
  lr: 3e-3
  seeds: 1
  updates: 2
  examples: 16
  no-save-optimizer-state: true
  generation: &search {{beam: 2, max-len-b: 4}}
  datasets:
    cnn_dailymail: {{generation: *search}}
columns: {{Fine-tuned: [rte]}}
"""
#: a part is enough where there are many like it
SHORTER = {"cola (*": "cola (10%) from 15*", "qnli (*": "qnli (100%) from all*"}
ONLY = {
    "low_resource": SHORTER["cola (*"],
    "low_resource_short": SHORTER["cola (*"],
    "heads": "squad from *",
    "longer": "rte from [be]*",
    "r3f": "rte from *",
    "r3f_dropout": "rte from *",
    "scale": "rte from [ba1]*",  # 10 and 15 datasets
    "short": "rte from 10*",
    "finetuning/anli": "S,M*",  # the first and the last training set
}
#: the scripts of the tables are one piece of shell: one of them does fresh heads, too
WITH_ITS_HEADS = "* from [bm]*"
#: scripts that differ from one that is run in nothing but the dataset, of a family that is run, too
LIKE_OTHERS = "qqp qnli mrpc sst2 boolq hellaswag openbookqa gigaword reddit_tifu arxiv pubmed big_patent"
LIKE_OTHERS = [f"finetuning/{name}" for name in (*LIKE_OTHERS.split(), "qnli_low_resource")]
TO_THE_END = [name for name in (*SCRIPTS, *STUDIES) if name not in LIKE_OTHERS]


@contextmanager
def streams_that_can_be_copied() -> Iterator[None]:
    """pytest's stand-ins for the standard streams write to its own files, in copies of this process, too."""
    before = sys.stdout, sys.stderr
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class Workplace:
    """Toy data, an encoder and a model file for ``roberta`` and ``bart`` each, and the folders of their runs."""

    def __init__(self, folder: Path, asked: Callable[..., list[str]]) -> None:
        self.folder, self._asked, self._done = folder, asked, set()
        #: folders of fine-tunings that have been asked for, by kind of the model and study
        self.wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
        paper = [plan.runs for plan in (expand(study_of(self._words_for(name))) for name in (*SCRIPTS, *STUDIES))]
        names = dict.fromkeys(name for runs in paper for run in runs for name in (*run.suite.names, *run.judged.names))
        data = write_catalog_data_bin(folder, names)
        encoders = {}
        with streams_that_can_be_copied():
            for kind in BASES:
                (folder / kind).mkdir()
                more = ("--arch", f"muppet_{kind}_tiny", "--max-update", "1", "--disable-validation")
                words = ("fairseq-train", *options(data, folder / kind, *more, suite="rte"))
                encoders[kind] = start(Command(words, "train.log"), folder / kind, {"OMP_NUM_THREADS": "1"}, gpus=False)
        for kind, process in encoders.items():
            process.join()
            assert process.exitcode == 0, (folder / kind / "stderr.log").read_text()
            (folder / kind / "checkpoint_last.pt").rename(folder / kind / "model.pt")
            shutil.copy(data / "dict.txt", folder / kind)
            base = EXAMPLES / "models" / f"{BASES[kind]}.yaml"
            text = TOY_MODEL.format(kind=kind, base=base, encoder=folder / kind, data=data)
            (folder / f"{kind}.yaml").write_text(text)

    def _words_for(self, name: str) -> list[str]:
        if "/" in name:
            words = [SHORTER.get(word, word) for word in self._asked(name)]
            of_tables = "--only" in words and "low_resource" not in name and name != "finetuning/rte"
            return [*words, "--only", ONLY.get(name, WITH_ITS_HEADS)] if of_tables else words
        only = ["--only", ONLY[name]] if name in ONLY else []
        return ["study", str(EXAMPLES / "studies" / f"{name}.yaml"), "--scale", "paper", *only]

    def runs(self, kind: str) -> Path:
        return self.folder / "runs" / kind

    def work_off(self, name: str, again: bool = False) -> tuple[str, Plan]:
        """Run a script or a study with the toy model in the place of its own, once unless ``again``.

        Returns the kind of the model and the plan.
        """
        words = self._words_for(name)
        kind = study_of(words).model.path.stem.partition("_")[0]
        words += ["--model", str(self.folder / f"{kind}.yaml"), "--runs", str(self.runs(kind)), "--devices", "cpu:3"]
        plan = expand(study_of(words))
        if name not in self._done or again:
            with streams_that_can_be_copied():
                cli.main(words)
            self._done.add(name)
            patterns = [value for option, value in pairwise(words) if option == "--only"] or ["*"]
            self.wanted[kind, plan.study.name] |= {
                str(tuning.run.folder)
                for tuning in plan.fine_tunings
                if all(fnmatch(tuning.run.label, pattern) for pattern in patterns)
            }
        return kind, plan

    def run(self, kind: str, run: str) -> dict[str, Any]:
        path = self.runs(kind) / run / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, asked: Callable[..., list[str]]) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"), asked)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report on everything so far would be most of the time; the last test has it made."""
    monkeypatch.setattr(command.report, "run", lambda args: None)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", [*TO_THE_END, *(pytest.param(name, marks=pytest.mark.slow) for name in LIKE_OTHERS)])
def test_to_the_end(name: str, workplace: Workplace):
    kind, plan = workplace.work_off(name)
    study = plan.study.name
    before = {str(run.folder) for runs in plan.pre_finetunings.values() for run in runs}
    begun = [found for run in before if (found := workplace.run(kind, run))]
    assert {run["state"] for run in begun} == {"finished"}
    assert len(begun) == len(before) or study in ONLY
    # every pre-finetuning is another: none of its options is lost on the way; but as long as no dataset is drawn
    # again, the running losses of the loss scaling "inverse" are what "none" has; and without dropout, R3F with the
    # paper's noise changes no loss
    alike = {"loss_scaling": {"inverse", "none"}, "r3f_dropout": {"r3f", "without"}}.get(study, set())
    assert len({run["training"]["loss"] for run in begun}) == len(begun) - len(alike) // 2
    for run in before if name in PRE_FINETUNING else ():
        assert (workplace.runs(kind) / run / "checkpoint_last.pt").exists()
    for run in workplace.wanted[kind, study]:
        assert workplace.run(kind, run)["state"] == "finished"


@pytest.mark.parametrize("kind", BASES)
def test_the_report_on_all_of_it(kind: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(command.report, "run", lambda args: None)
        plans = {name: workplace.work_off(name) for name in TO_THE_END}
    runs = workplace.runs(kind)
    stamps = {path: path.stat().st_mtime_ns for path in runs.rglob("run.json")}
    workplace.work_off(next(name for name, (of, plan) in plans.items() if of == kind and plan.fine_tunings), again=True)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("run.json")} == stamps
    found = json.loads((runs / "report.json").read_text())["studies"]
    assert found.keys() == {plan.study.name for of, plan in plans.values() if of == kind and plan.fine_tunings}
    page, html = ((runs / f"report.{ending}").read_text() for ending in ("md", "html"))
    for name, study in found.items():
        (model,) = study["models"]
        finished = {tuning["path"] for tuning in model["fine_tunings"] if tuning["state"] == "finished"}
        assert finished >= workplace.wanted[kind, name]  # others may have been done for another study
        before = [run for start in model["pre_finetuning"] for run in start["runs"]]
        states = {run["state"] for run in (*before, *model["fine_tunings"])}
        assert states <= {"finished", "not started"}
        everything = (kind, name) == ("roberta", "table5") or not (name in ONLY or name.startswith("table"))
        assert ("not started" not in states) == everything
        assert all(cell["seeds"] == cell["planned_seeds"] for cell in model["cells"]) == everything
        assert f"## {study['title']}\n" in page
        assert f"<h2>{study['title']}</h2>" in html
        for ending in ("svg", "png"):
            assert (runs / "figures" / f"{name}.{ending}").exists()
