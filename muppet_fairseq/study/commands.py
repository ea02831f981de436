"""The command lines of a run: ``fairseq-train``, and what comes before and after it."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import muppet_fairseq
from muppet_fairseq import plan
from muppet_fairseq.data.schedule import SAMPLINGS, STRATEGIES
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.study.expand import Run
from muppet_fairseq.tasks.muppet import MuppetTaskConfig

#: stands for a number of updates that is known only when the data are there
UPDATES = "UPDATES"

#: what a training leaves in its run's folder, and a run that looks for the most similar prompt
CHECKPOINT, NEAREST = "checkpoint_last.pt", "nearest.pt"

#: the variables of the environment that say how many threads a process has
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: joins processes on CPUs, which fairseq does not do by itself: torchrun starts them, gloo joins them; exec: so that
#: signals reach them
_ON_CPUS = (
    'exec "$@" --ddp-backend legacy_ddp --distributed-backend gloo --distributed-init-method env:// '
    '--distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK" --distributed-no-spawn'
)


@dataclass(frozen=True)
class Command:
    """One process.

    Attributes:
        output: the file in the run's folder that keeps its standard output.
        makes: the file there that later commands of the run need.
    """

    words: tuple[str, ...]
    output: str
    makes: str | None = None

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Machine:
    """What runs are started on.

    Attributes:
        devices: numbers of GPUs; without GPUs, a name for each process at a time.
        launcher: words that start the workers of a pre-finetuning, here or on other machines, too; empty: torchrun
            starts them on ``devices``.
        launched: how many ``launcher`` starts.
    """

    devices: tuple[str, ...]
    gpus: bool
    launcher: tuple[str, ...] = ()
    launched: int = 0

    @property
    def threads(self) -> int:
        """Of each process. With other numbers of threads, sums are taken in other orders."""
        return max(1, (os.cpu_count() or 1) // len(self.devices))

    def workers(self, run: Run) -> int:
        """How many processes train. Raises MuppetError where the run wants more than there are devices."""
        wanted = run.settings.get("workers", 1) if run.kind == "pre_finetuning" else 1
        if run.kind == "pre_finetuning" and self.launcher:
            return self.launched
        if wanted == "all":
            return min(len(self.devices), sub_batches(run))
        if wanted > len(self.devices):
            raise MuppetError(
                f"{run.label} wants {wanted} workers, and there are {len(self.devices)} devices; see --devices"
            )
        return wanted

    def places(self, run: Run) -> int:
        """How many of the devices the run takes."""
        return len(self.devices) if run.kind == "pre_finetuning" and self.launcher else self.workers(run)


def commands(run: Run, runs: Path, machine: Machine, updates: int | str) -> list[Command]:
    """All commands of a run in ``runs``, one after another: the last one of a fine-tuning evaluates it."""
    found = [nearest_command(run, runs)] if run.probe else []
    found.append(train_command(run, runs, machine, updates))
    return [*found, evaluate_command(run, runs, machine)] if run.judged.entries else found


def nearest_command(run: Run, runs: Path) -> Command:
    """The ``muppet nearest`` of a run that has a probe."""
    out = str(runs / run.folder / NEAREST)
    candidates = [_checkpoint(candidate, runs) for candidate in run.candidates]
    words = ("muppet", "nearest", "--to", _checkpoint(run.probe, runs), "--out", out, *candidates)
    return Command(words, "nearest.txt", makes=NEAREST)


def train_command(run: Run, runs: Path, machine: Machine, updates: int | str) -> Command:
    """The ``fairseq-train`` of a run in ``runs``, for so many ``updates``."""
    folder, workers = runs / run.folder, machine.workers(run)
    options = {
        "user-dir": _user_dir(),
        "task": "muppet",
        "suite": str(folder / "suite.yaml"),
        "criterion": "muppet",
        **_origin(run, runs),
        "reuse-heads": "true" if run.settings.get("reuse-heads") else "false",
        "optimizer": "adam",
        "lr-scheduler": "polynomial_decay",
        **({"teachers": ",".join(_checkpoint(teacher, runs) for teacher in run.teachers)} if run.teachers else {}),
        **run.options,
        "sub-batches": str(sub_batches(run)),
        "update-freq": str(update_freq(run, workers)),
        "max-update": str(updates),
        "total-num-update": str(updates),
        "warmup-updates": str(warmup_updates(run, updates)),
        "seed": str(run.seed),
        "save-dir": str(folder),
        "no-progress-bar": "true",
        "log-format": "json",
        "no-epoch-checkpoints": "true",
        **({} if machine.gpus else {"cpu": "true", "bf16": "false", "fp16": "false"}),
    }
    words = ["fairseq-train", str(run.data)]
    for option, value in options.items():
        if value == "true":
            words.append(f"--{option}")
        elif value != "false":
            words += [f"--{option}", value]
    return Command((*_launcher(run, machine, workers), *words), "train.log", makes=CHECKPOINT)


def _origin(run: Run, runs: Path) -> dict[str, str]:
    """The options that say what a training starts from."""
    backbone = _checkpoint(run.backbone, runs)
    if run.tunes == "all":
        return {"finetune-from-model": backbone}
    part = run.part
    if run.probe:
        part = runs / run.folder / NEAREST
    elif run.after and run.after.tunes != "all":
        part = run.after
    return {"backbone": backbone} | ({"finetune-from-model": _checkpoint(part, runs)} if part else {})


def _checkpoint(origin: Run | Path, runs: Path) -> str:
    """The file of a model, or of what was trained of it."""
    return str(runs / origin.folder / CHECKPOINT if isinstance(origin, Run) else origin)


def evaluate_command(run: Run, runs: Path, machine: Machine) -> Command:
    """The ``muppet evaluate`` of a fine-tuning in ``runs``."""
    folder = runs / run.folder
    named = any(entry.head or entry.metric for entry in run.judged.entries)
    datasets = str(folder / "judged.yaml") if named else ",".join(run.judged.names)
    generation = [word for key, value in run.settings.get("generation", {}).items() for word in (f"--{key}", value)]
    checkpoint = _checkpoint(run, runs)
    whole = run.tunes == "all"
    words = ("muppet", "evaluate", checkpoint if whole else _checkpoint(run.backbone, runs), str(run.data))
    words += () if whole else ("--prompts", checkpoint)
    words += ("--datasets", datasets)
    words += ("--predictions", str(folder / "predictions"), "--json", "--example-scores", *generation)
    if "split" in run.settings:
        words += ("--split", run.settings["split"])
    return Command((*words, "--device", "cuda" if machine.gpus else "cpu"), "evaluation.json")


def update_freq(run: Run, workers: int) -> int:
    """Sub-batches of a worker in an update, at most."""
    return -(-sub_batches(run) // workers)


def sub_batches(run: Run) -> int:
    """Sub-batches of an update, whatever the number of workers: by default the paper's 64 GPUs (§3.2), or one."""
    return run.settings.get("sub-batches", 64 if run.kind == "pre_finetuning" else 1)


def warmup_updates(run: Run, updates: int | str) -> int | str:
    """The first of the updates, in which the learning rate rises."""
    share = run.settings.get("warmup", 0.0)
    return int(share * updates) if isinstance(updates, int) else f"{share}*{updates}"


def count_updates(run: Run, suite: Path) -> int:
    """The run's updates: as many as its settings say, or those of its epochs by a plan of the data of ``suite``.

    Raises MuppetError where neither is said, or the data cannot be planned.
    """
    if "updates" in run.settings:
        return run.settings["updates"]
    if "epochs" not in run.settings:
        raise MuppetError(f"{run.label}: nothing says how long; give 'updates' or 'epochs' in the study or the model")
    # one worker and all of an update's sub-batches: the same number of updates as on any number of workers
    described = plan.describe(
        Namespace(
            data=str(run.data),
            suite=str(suite),
            workers=1,
            update_freq=sub_batches(run),
            sub_batches=None,
            max_tokens=_number(run, "max-tokens", int, None),
            batch_size=_number(run, "batch-size", int, None),
            max_positions=_number(run, "max-positions", int, MuppetTaskConfig.max_positions),
            window_overlap=_number(run, "window-overlap", int, MuppetTaskConfig.window_overlap),
            batching=_one_of(run, "batching", STRATEGIES),
            sampling=_one_of(run, "sampling", SAMPLINGS),
            sampling_temperature=_number(run, "sampling-temperature", float, MuppetTaskConfig.sampling_temperature),
            seed=run.seed,
        )
    )
    return described["updates"] * run.settings["epochs"]


def _number(run: Run, option: str, kind: type[int | float], default: float | None) -> Any:
    try:
        return kind(run.options[option]) if option in run.options else default
    except ValueError:
        raise MuppetError(f"{run.label}: {run.options[option]!r} is no number for {option!r}") from None


def _one_of(run: Run, option: str, known: tuple[str, ...]) -> str:
    value = run.options.get(option, known[0])
    if value not in known:
        words = f"{nearest(value, known)}; known are {', '.join(known)}"
        raise MuppetError(f"{run.label}: {value!r} is unknown for {option!r}{words}")
    return value


def _launcher(run: Run, machine: Machine, workers: int) -> tuple[str, ...]:
    if run.kind == "pre_finetuning" and machine.launcher:
        return machine.launcher
    if workers == 1:
        return ()
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", str(workers), "--no-python")
    return torchrun if machine.gpus else (*torchrun, "sh", "-c", _ON_CPUS, "sh")


def _user_dir() -> str:
    folder = Path(muppet_fairseq.__file__).parent
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
