"""Workers that die or hang: the others stop soon, and say which worker it was; torchrun brings the run back."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer

from muppet_fairseq import watch
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.runs import Run, equal, finished, parameters
from tests.toy_suite import launch, options

#: seconds until all must have stopped once one has died; the machine is shared
SOON = 15.0


def arguments(data, folder, workers: int, *more: str) -> list[str]:
    """A run that would take long."""
    common = ("--max-update", "10000", "--disable-validation", "--update-freq", str(4 // workers))
    return options(data, folder, *common, *more)


def at_update(rank: int, update: int, do: Callable[[], Any]) -> Callable[[int], None]:
    """What worker ``rank`` does in the forward pass of an update."""

    def inject(this: int) -> None:
        train_step = MuppetTask.train_step

        def step(self: MuppetTask, *rest: Any, **named: Any) -> Any:
            if named.get("update_num", 0) == update - 1:
                do()
            return train_step(self, *rest, **named)

        if this == rank:
            MuppetTask.train_step = step

    return inject


def wait_for_update(run: Run, update: int = 3) -> None:
    """Wait until the first worker has logged it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        out = run.folder / "worker-0.out"
        if out.exists() and f'"num_updates": "{update}"' in out.read_text():
            return
        time.sleep(0.02)
    run.kill()
    raise TimeoutError(run.errors())


def stopped(run: Run, but: int) -> tuple[list[str], float]:
    """What the other workers say at last, and after how many seconds all have ended."""
    began = time.monotonic()
    statuses = run.wait(60)
    took = time.monotonic() - began
    others = [rank for rank in range(run.workers) if rank != but]
    assert all(statuses[rank] == 1 for rank in others), (statuses, *(run.errors(rank)[-1500:] for rank in others))
    assert all(len(run.sentences(rank)) == 1 for rank in others), [run.errors(rank)[-1500:] for rank in others]
    assert not any("Traceback" in run.errors(rank) for rank in others)
    return [run.sentences(rank)[0] for rank in others], took


@pytest.mark.parametrize("workers", [2, 4])
def test_a_worker_that_is_killed_is_named_by_the_others(data, tmp_path, ledger, tries, workers):
    rng = random.Random(workers)
    for number in range(tries(workers == 2, 6)):
        folder = tmp_path / str(number)
        run = Run(arguments(data, folder, workers), folder, workers=workers)
        wait_for_update(run, rng.randint(1, 10))
        time.sleep(rng.random() * 0.1)
        dead = rng.randrange(1, workers)
        pid = run.processes[dead].pid
        run.kill(dead)
        said, took = stopped(run, dead)
        named = [
            f"worker {dead} (process {pid} on " in sentence and "has died in update " in sentence for sentence in said
        ]
        ledger.note(
            f"worker killed, {workers} workers: the others stop", survived=all(named) and took < SOON, recovery=took
        )
        assert all(named), said
        assert took < SOON


def test_the_first_worker_where_all_meet_is_killed(data, tmp_path, ledger, tries):
    for number in range(tries(1, 4)):
        folder = tmp_path / str(number)
        run = Run(arguments(data, folder, 2), folder, workers=2)
        wait_for_update(run, 20)
        run.kill(0)
        said, took = stopped(run, 0)
        survived = said[0].startswith("worker 0 (process ") and took < SOON
        ledger.note("first worker killed: the others stop", survived=survived, recovery=took)
        assert survived, said


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come more often, so that tests wait less."""
    monkeypatch.setattr(watch, "BEAT", 0.3)


HANGS = {
    "in an update": lambda: _hangs_in(MuppetCriterion, "forward", rank=1, after=5),
    "stopped": lambda: at_update(1, 3, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "reading data": lambda: _hangs_in(MultitaskDataset, "__getitem__", rank=1, after=40),
    "writing a checkpoint": lambda: _hangs_in(Trainer, "state_dict", rank=0, after=1),
    "validation": lambda: _hangs_in(MuppetTask, "valid_step", rank=1, after=3),
}


def _for_ever() -> None:
    time.sleep(3600)


def _hangs_in(kind: type, name: str, *, rank: int, after: int) -> Callable[[int], None]:
    def inject(this: int) -> None:
        method, calls = getattr(kind, name), iter(range(after))

        def called(*rest: Any, **named: Any) -> Any:
            if next(calls, None) is None:
                _for_ever()
            return method(*rest, **named)

        if this == rank:
            setattr(kind, name, called)

    return inject


@pytest.mark.usefixtures("quick_watch")
@pytest.mark.parametrize("where", HANGS)
def test_a_worker_that_hangs_is_named_and_not_waited_for(data, tmp_path, ledger, tries, where):
    tries(where == "in an update", 1)
    hung = 0 if where == "writing a checkpoint" else 1
    words = arguments(data, tmp_path, 2, "--worker-timeout", "2", "--save-interval-updates", "4")
    if where == "validation":
        words.remove("--disable-validation")
    run = Run(words, tmp_path, workers=2, inject=HANGS[where]())
    other = run.processes[1 - hung]
    other.join(90)
    run.processes[hung].join(2)  # the one that hangs ends by itself, too, where it can
    ended = run.processes[hung].exitcode
    run.kill()
    run.wait()
    said = "; ".join(run.sentences(1 - hung))
    survived = other.exitcode == 1 and f"worker {hung} (process {run.processes[hung].pid} on " in said
    ledger.note(f"worker hangs ({where}): the others stop", survived=survived)
    assert survived, run.errors(1 - hung)
    assert said.count("2 s (--worker-timeout)") == 1
    if where == "in an update":
        assert "update 3, sub-batch 2, " in said
        assert ended == 1
        assert "_for_ever" in run.errors(1), "it shows where it is"


def test_an_error_of_one_worker_is_told_by_all(data, tmp_path, ledger):
    def fail() -> None:
        raise MuppetError("its disk is gone")

    run = Run(arguments(data, tmp_path, 2), tmp_path, workers=2, inject=at_update(1, 3, fail))
    said, took = stopped(run, but=1)
    survived = re.fullmatch(r"worker 1 \(process \d+ on \S+\) has stopped in update 3.*: its disk is gone", said[0])
    ledger.note("error in one worker: the others stop", survived=bool(survived) and took < SOON, recovery=took)
    assert survived, said


# -- torchrun -----------------------------------------------------------------------------------------


class Launched:
    """The toy run on four workers that torchrun starts, and starts again after a fault."""

    def __init__(self, data: Path, folder: Path, *more: str, restarts: int) -> None:
        folder.mkdir()
        more = ("--max-update", "12", "--disable-validation", "--save-interval-updates", "2", *more)
        words, environment = launch(options(data, folder, *more), 4, "--max-restarts", str(restarts))
        self.folder = folder
        self.output = (folder / "train.log").open("w+b")
        self.process = subprocess.Popen(words, env=environment, stdout=self.output, stderr=self.output)

    def workers(self) -> dict[int, int]:
        """The workers' process numbers, by rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        environments = {int(child): Path(f"/proc/{child}/environ").read_bytes() for child in children}
        ranks = {child: re.search(rb"(?:^|\0)RANK=(\d+)", text) for child, text in environments.items()}
        return {int(rank[1]): child for child, rank in ranks.items() if rank}

    def text(self) -> str:
        return (self.folder / "train.log").read_text(errors="replace")

    def updates(self) -> list[int]:
        """The updates that were logged, those done again included."""
        return [int(n) for n in re.findall(r'train_inner .*"num_updates": "(\d+)"', self.text())]

    def wait_for_update(self, update: int) -> None:
        until = time.monotonic() + 120
        while update not in self.updates():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                pytest.fail(self.text()[-3000:])
            time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Parameters and optimizer state of the toy run on four workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    more = ("--max-update", "12", "--disable-validation", "--update-freq", "1", "--dropout", "0.1")
    finished(options(data, folder, *more), folder, workers=4)
    return parameters(folder)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_torchrun_brings_the_run_back_to_the_same_result(data, tmp_path, undisturbed, ledger, tries, fault):
    rng = random.Random(int(fault))
    for number in range(tries(0, 3)):
        run = Launched(data, tmp_path / str(number), "--worker-timeout", "3", "--dropout", "0.1", restarts=2)
        run.wait_for_update(rng.randint(3, 8))
        rank = rng.randrange(4)
        before = run.workers()
        os.kill(before[rank], fault)
        began, done = time.monotonic(), len(run.updates())
        while len(run.updates()) <= done + 1 and run.process.poll() is None:
            time.sleep(0.05)
        took = time.monotonic() - began
        status = run.process.wait(120)
        text = run.text()
        same = status == 0 and equal(parameters(run.folder), undisturbed)
        what = "killed" if fault == signal.SIGKILL else "stopped"
        ledger.note(f"one of torchrun's 4 workers {what}: started again", survived=same, recovery=took)
        assert same, text[-3000:]
        # by the others, or, where it ends them first, by torchrun
        assert re.search(
            rf"muppet: worker {rank} \(process {before[rank]} |local_rank: {rank} \(pid: {before[rank]}\)", text
        )


def test_without_restarts_torchrun_ends_and_names_the_rank(data, tmp_path, ledger, tries):
    tries(0, 1)
    run = Launched(data, tmp_path / "run", restarts=0)
    run.wait_for_update(3)
    workers = run.workers()
    os.kill(workers[2], signal.SIGKILL)
    began = time.monotonic()
    status = run.process.wait(60)
    took = time.monotonic() - began
    left = [process for process in workers.values() if Path(f"/proc/{process}").exists()]
    survived = status != 0 and took < 2 * SOON and not left and "local_rank: 2" in run.text()
    ledger.note("one of torchrun's 4 workers killed: all end", survived=survived, recovery=took)
    assert survived, (status, took, left, run.text()[-3000:])
