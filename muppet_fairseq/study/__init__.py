"""Run studies: pre-finetune, fine-tune from every start, evaluate, report; stopped, it goes on where it was."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from muppet_fairseq import report
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.provenance import versions
from muppet_fairseq.report.read import BASE, FORMAT, read_records
from muppet_fairseq.report.records import restore
from muppet_fairseq.spec import read_dataset_json
from muppet_fairseq.study.commands import THREADS, UPDATES, Machine, commands
from muppet_fairseq.study.driver import Driver
from muppet_fairseq.study.expand import Plan, Run, expand, with_needed
from muppet_fairseq.study.run_folder import read_run
from muppet_fairseq.study.settings import Model, read_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", type=Path, nargs="+", help="study file, as examples/studies/batching.yaml; several: one after another"
    )
    parser.add_argument("--scale", help="one of the study's scales, as mini or paper; default: its first")
    parser.add_argument("--model", type=Path, metavar="FILE", help="another model file than the scale's")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of all runs; default: runs/MODEL")
    parser.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="do nothing again that these records say is finished, as results/mini, and add to them what is done now",
    )
    parser.add_argument("--seeds", type=_count, metavar="N", help="fine-tunings that differ in nothing but the seed")
    parser.add_argument("--updates", type=_count, metavar="N", help="updates of each pre-finetuning")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="only fine-tunings with such a label, as '*boolq*seed 1'; of several patterns, all have to fit",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=_named_file,
        default=[],
        metavar="[START=]FILE",
        help="fine-tune from this checkpoint instead of pre-finetuning, one start or all",
    )
    parser.add_argument("--devices", metavar="D", help="GPUs as 0,1,2, or cpu:N for N processes; default: all")
    parser.add_argument("--launcher", type=shlex.split, default=(), metavar="WORDS", help="starts pre-finetunings")
    parser.add_argument("--workers", type=_count, default=0, metavar="N", help="how many workers --launcher starts")
    parser.add_argument("--keep-models", action="store_true", help="keep the fine-tuned models, not only their answers")
    parser.add_argument("--dry-run", action="store_true", help="print every command and do nothing")


@dataclass(frozen=True)
class _Task:
    """A study, the folder of all runs, and those of its runs that are wanted."""

    plan: Plan
    runs: Path
    wanted: list[Run]


def run(args: argparse.Namespace) -> None:
    """Do what is missing of each study, then report on all studies in its folder.

    Raises MuppetError for what is wrong in the files, before anything is done, and at the end where runs failed.
    """
    if bool(args.launcher) != bool(args.workers):
        raise MuppetError("--launcher and --workers go together: what starts the workers, and how many it starts")
    machine = _machine(args)
    tasks = [_task(path, args) for path in args.study]
    if not any(task.wanted for task in tasks):
        plan = tasks[0].plan
        example = next((run.label for run in plan.runs if run.judged.entries), "none")
        raise MuppetError(f"no fine-tuning of {plan.study.path} is like {' and '.join(args.only)}; one is {example!r}")
    failures: dict[str, str] = {}
    recorded = read_records(args.records) if args.dry_run and args.records else {}
    for task in filter(lambda task: task.wanted, tasks):
        if args.dry_run:
            print("\n".join(_dry(task, machine, recorded)))
        else:
            failures |= _work_off(task, machine, args)
    if failures:
        wanted = {run.key: run for task in tasks for run in task.wanted}
        named = "; ".join(f"{wanted[key].label}: {reason}" for key, reason in list(failures.items())[:3])
        raise MuppetError(f"{len(failures)} of {len(wanted)} runs failed ({named}); mend that and run the study again")


def _task(path: Path, args: argparse.Namespace) -> _Task:
    study = read_study(path, args.scale, args.model)
    replaced = [name for name, start in study.starts.items() if start.pre_finetuning is not None]
    checkpoints = {name: path for start, path in args.checkpoint for name in ([start] if start else replaced)}
    for file in checkpoints.values():
        if not (file.is_file() or args.dry_run):
            raise MuppetError(f"there is no checkpoint {file}; see --checkpoint")
    plan = expand(study, checkpoints, updates=args.updates, seeds=args.seeds)
    return _Task(plan, args.runs or Path("runs") / study.model.path.stem, _wanted(plan, args.only))


def _work_off(task: _Task, machine: Machine, args: argparse.Namespace) -> dict[str, str]:
    """Do one study and report. Returns why runs failed, by key."""
    study, runs, wanted = task.plan.study, task.runs, task.wanted
    if args.records:
        restore((run.folder for run in wanted), runs, args.records)
    left = [run for run in wanted if read_run(runs / run.folder).get("state") != "finished"]
    if left:
        _prepare(study.model, with_needed(left))
    if task.plan.fine_tunings:
        described = _described(task.plan, shlex.join(["muppet", *sys.argv[1:]]))
        write_text(runs / "studies" / study.name / "study.json", json.dumps(described, indent=1) + "\n")
    try:
        failures = Driver(runs, machine, keep=args.keep_models).work_off(wanted)
    except KeyboardInterrupt:
        raise MuppetError(f"stopped; the same command goes on with what is in {runs}") from None
    if task.plan.fine_tunings:
        report.run(Namespace(runs=[runs], out=None, records=args.records))
    else:  # there are no scores to report
        print("\n".join(str(runs / run.folder / "checkpoint_last.pt") for run in wanted if run.key not in failures))
    return failures


def _wanted(plan: Plan, patterns: list[str] | None) -> list[Run]:
    """The runs to do: all, or the fine-tunings with such labels, if there are any, and what they start from."""
    if not patterns:
        return plan.runs
    chosen = [r for r in plan.runs if r.judged.entries and all(fnmatch(r.label, pattern) for pattern in patterns)]
    needed = {run.key for run in with_needed(chosen)}
    return [run for run in plan.runs if run.key in needed]


def _machine(args: Namespace) -> Machine:
    devices = args.devices
    if devices is None:
        # asks the driver, not CUDA, which processes forked later could not use any more
        count = torch.cuda.device_count()
        devices = ",".join(map(str, range(count))) if count else f"cpu:{os.cpu_count()}"
    kind, _, number = devices.partition(":")
    if kind == "cpu":
        if not (number or "1").isdigit() or int(number or 1) < 1:
            raise MuppetError(f"--devices {devices} is no number of processes; give cpu:2, say")
        names, gpus = tuple(f"cpu {i}" for i in range(int(number or 1))), False
    else:
        names, gpus = tuple(name.strip() for name in devices.split(",")), True
        if not all(name.isdigit() for name in names):
            raise MuppetError(f"--devices {devices} names no GPUs; give their numbers, as 0,1, or cpu:N")
    return Machine(names, gpus, tuple(args.launcher), args.workers)


def _dry(task: _Task, machine: Machine, recorded: dict[str, dict[str, Any]]) -> Iterable[str]:
    """The commands of a study, as a shell would take them."""
    model, runs, wanted = task.plan.study.model, task.runs, task.wanted
    yield f"export {' '.join(f'{name}={machine.threads}' for name in THREADS)}"
    if command := _import_command(model):
        yield shlex.join(command)
    elif not _has_encoder(model):
        yield f"# {_no_encoder(model)}"
    if command := _prepare_command(model, wanted):
        yield shlex.join(command)
    for run in wanted:
        folder = runs / run.folder
        state = (read_run(folder) or recorded.get(str(run.folder), {})).get("state", "not started")
        names = " ".join(run.suite.names)
        yield f"\n# {run.label}: {state}\n# {folder / 'suite.yaml'}: {names}"
        for command in commands(run, runs, machine, run.settings.get("updates", UPDATES)):
            # a log also has what earlier attempts said
            redirected = "" if command.output.endswith(".log") else f" > {shlex.quote(str(folder / command.output))}"
            yield f"{command}{redirected}"
    kinds = [run.kind for run in wanted]
    yield f"\n# {kinds.count('pre_finetuning')} pre-finetunings, {kinds.count('fine_tuning')} fine-tunings"
    if any("updates" not in run.settings for run in wanted):
        yield f"# {UPDATES}: of the epochs in the study or the model, counted when the data are there"


def _prepare(model: Model, wanted: list[Run]) -> None:
    """Make the encoder and the data that are missing. Raises MuppetError."""
    if not (_has_encoder(model) or model.source):
        raise MuppetError(_no_encoder(model))
    for command in (_import_command(model), _prepare_command(model, wanted)):
        if command:
            print(shlex.join(command), flush=True)
            python = [sys.executable, "-m"]
            words = [*python, *command[2:]] if command[0] == "python" else [*python, "muppet_fairseq.cli", *command[1:]]
            if subprocess.run(words, check=False).returncode:
                raise MuppetError("that failed, and the study needs it; mend what it says and run the study again")


def _has_encoder(model: Model) -> bool:
    return (model.encoder / "model.pt").exists()


def _no_encoder(model: Model) -> str:
    return (
        f"there is no {model.encoder / 'model.pt'}, which {model.path} starts from; put it there with its dict.txt "
        "and the tokenizer's files, as examples/README.md says"
    )


def _import_command(model: Model) -> list[str]:
    """What makes the encoder where it is missing, if anything does."""
    if _has_encoder(model) or model.source is None:
        return []
    return ["muppet", "import-hf", model.source, str(model.encoder)]


def _prepare_command(model: Model, wanted: list[Run]) -> list[str]:
    """What prepares the datasets that are missing."""
    names = dict.fromkeys(name for run in wanted for name in (*run.suite.names, *run.judged.names))
    missing = [name for name in names if not _is_prepared(model.data / name)]
    if not missing:
        return []
    command = ["python", "-m", "preprocess", "prepare", "--datasets", ",".join(missing)]
    command += ["--tokenizer", str(model.encoder), "--out", str(model.data), "--jobs", str(os.cpu_count())]
    return [*command, *model.prepare]


def _is_prepared(folder: Path) -> bool:
    try:
        read_dataset_json(folder)
    except MuppetError:  # of an older version, say
        return False
    return True


def _described(plan: Plan, command: str) -> dict[str, object]:
    """``study.json``: all runs that the study consists of, for the report."""
    study = plan.study
    starts = []
    for name, start in {BASE: study.base, **study.starts}.items():
        runs = plan.pre_finetunings[name]
        x = start.x if start.x is not None or not runs else len(runs[0].suite.entries)
        teachers = list(dict.fromkeys(str(teacher.folder) for run in runs for teacher in run.teachers))
        before = {"runs": [str(run.folder) for run in runs], "teachers": teachers}
        starts.append({"name": name, "label": start.label, "x": x, **before})
    return {
        "format": FORMAT,
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "paper": study.paper,
        "model": study.model.name,
        "scale": study.scale,
        "figure": study.figure,
        "axis": study.axis,
        "compared_with": study.compared_with,
        "command": command,
        "starts": starts,
        "columns": [vars(column) for column in study.columns],
        "fine_tunings": [
            {
                "start": tuning.start,
                "variant": tuning.variant,
                "datasets": tuning.run.judged.names,
                "hyper_parameters": tuning.hyper_parameters,
                "seed": tuning.run.seed,
                "run": str(tuning.run.folder),
            }
            for tuning in plan.fine_tunings
        ],
        "versions": versions(),
    }


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _named_file(text: str) -> tuple[str | None, Path]:
    name, found, path = text.partition("=")
    return (name, Path(path)) if found else (None, Path(text))
