"""Kill anywhere: after SIGKILL at any moment the same command goes on as if nothing had happened."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.file_io import PathManager

from muppet_fairseq import checkpoint_file
from muppet_fairseq.audit import Audit
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.faults.audited import SUITE, has_update, lost_or_repeated, records, same, sub_batches, until_update
from tests.runs import Run
from tests.toy_suite import ROOT, options

SAVING = ("--save-interval-updates", "2", "--keep-interval-updates", "1")
SAVING += ("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric")


def arguments(data: Path, save_dir: Path, *more: str) -> list[str]:
    """Two epochs with dropout, validation, checkpoints every other update, the best and the last one."""
    with_epochs = [word for word in options(data, save_dir, suite=SUITE) if word != "--no-epoch-checkpoints"]
    return [*with_epochs, "--audit", "--dropout", "0.1", "--max-epoch", "2", "--max-tokens", "400", *SAVING, *more]


@pytest.fixture(scope="session")
def undisturbed(data, tmp_path_factory) -> Callable[..., tuple[Path, float]]:
    """``undisturbed(workers, *more)``: a run that nobody disturbs, and its seconds after the first update."""
    done: dict[tuple, tuple[Path, float]] = {}

    def reference(workers: int, *more: str) -> tuple[Path, float]:
        if (more, workers) not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            words = arguments(data, folder / "run", "--update-freq", str(4 // workers), *more)
            run = Run(words, folder, workers=workers)
            first = until_update(run, folder / "run", set())
            assert run.wait() == [0] * workers, run.errors()
            assert lost_or_repeated(folder / "run") == 0
            done[more, workers] = folder / "run", time.monotonic() - run.started - first
        return done[more, workers]

    return reference


#: every validation would start two more
LOADERS = ("--num-workers", "2", "--disable-validation")
#: name, workers, kills, more arguments
CASES = [
    ("one worker", 1, (2, 32), ()),
    ("two workers", 2, (0, 20), ()),
    (
        "inverse loss scaling, homogeneous updates",
        1,
        (0, 10),
        ("--loss-scaling", "inverse", "--batching", "batch_homogeneous"),
    ),
    ("loader processes", 1, (0, 4), LOADERS),
    ("R3F", 1, (0, 8), ("--criterion", "muppet_r3f")),
]


@pytest.mark.parametrize(("name", "workers", "kills", "more"), CASES, ids=[case[0] for case in CASES])
def test_killed_at_random_moments(data, tmp_path, tries, ledger, undisturbed, name, workers, kills, more):
    """Runs are killed up to six times each: before, in and after updates, validation and checkpoints; with two
    workers one at a time, and the other a little later."""
    wanted = tries(*kills)
    reference, seconds = undisturbed(workers, *more)
    rng = random.Random(f"kill {name}")
    number = 0
    while wanted:
        folder = tmp_path / str(number)
        number += 1
        killed, recovery = 0, None
        while True:
            before = records(folder / "run")
            words = arguments(data, folder / "run", "--update-freq", str(4 // workers), *more)
            run = Run(words, folder, workers=workers)
            if killed < min(6, wanted):
                if rng.random() < 0.8:
                    first = until_update(run, folder / "run", before)
                    time.sleep(rng.uniform(0, 0.7 * seconds))
                else:
                    first = None
                    time.sleep(rng.uniform(0, 0.5))
                run.kill(rng.choice([None, *range(workers)]))
                time.sleep(rng.uniform(0, 0.1))
                run.kill()
            else:
                first = until_update(run, folder / "run", before)
            statuses = run.wait()
            if killed and first is not None:
                recovery = max(first, recovery or 0)
            if not any(statuses):
                break
            assert statuses.count(-signal.SIGKILL), (statuses, run.errors())
            killed += 1
        wanted -= killed
        lost, survived = lost_or_repeated(folder / "run"), same(folder / "run", reference)
        ledger.note(f"kill at a random moment: {name}", tries=killed, survived=survived, lost=lost, recovery=recovery)
        assert survived
        assert lost == 0
        shutil.rmtree(folder)


# -- chosen moments -----------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


Fault = Callable[[int], None]


def on_call(
    owner: Any, name: str, number: int, fault: Callable[..., Any], *, rank: int = 0, path: str | None = None
) -> Fault:
    """Replace a function in the worker ``rank``: call ``number`` (of those with ``path`` in their last argument) is
    ``fault``'s, with the function and its arguments."""

    def inject(own_rank: int) -> None:
        original, calls = getattr(owner, name), 0

        def replaced(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += path is None or path in str(arguments[-1])
            if calls == number:
                return fault(original, *arguments, **keywords)
            return original(*arguments, **keywords)

        if own_rank == rank:
            setattr(owner, name, staticmethod(replaced) if owner is PathManager else replaced)

    return inject


def at_once(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    die()


def late(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """When the other worker has gone on as far as it can."""
    time.sleep(0.5)
    die()


def afterwards(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    original(*arguments, **keywords)
    die()


def half_saved(original: Callable[..., Any], state: Any, file: Any) -> None:
    whole = io.BytesIO()
    original(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


def half_copied(original: Callable[..., Any], source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes()[: Path(source).stat().st_size // 2])
    die()


#: a row of the table, workers, more arguments, and the moments at which a run is killed, restarted, killed
#: again; checkpoints come after updates 2, 4, 5 (where the epoch ends), 6, 8 and 10
CHAINS: list[tuple[str, int, tuple[str, ...], dict[str, Fault]]] = [
    (
        "kill while a checkpoint is written",
        1,
        (),
        {
            "half of the first one is saved": on_call(torch, "save", 1, half_saved),
            "half of checkpoint_last.pt is copied": on_call(shutil, "copyfile", 2, half_copied, path="last"),
            "half of an epoch's one is saved": on_call(torch, "save", 2, half_saved),
        },
    ),
    (
        "kill while a checkpoint is written",
        1,
        (),
        {
            "half of checkpoint_best.pt is copied": on_call(shutil, "copyfile", 1, half_copied, path="best"),
            "checkpoint_best.pt is copied": on_call(PathManager, "copy", 1, afterwards, path="best"),
            "it is renamed, not copied": on_call(checkpoint_file, "replace", 1, afterwards, path="checkpoint_1_4"),
        },
    ),
    (
        "kill while a checkpoint is written",
        1,
        (),
        {
            "half of the first checkpoint_last.pt is copied": on_call(shutil, "copyfile", 1, half_copied, path="last"),
            "it is not renamed": on_call(checkpoint_file, "replace", 1, at_once, path="checkpoint_1_4"),
            "old ones are not removed": on_call(os, "remove", 1, at_once, path="checkpoint_"),
        },
    ),
    (
        "kill while a checkpoint is written",
        1,
        (),
        {
            "an epoch's one is not saved yet": on_call(torch, "save", 3, at_once),
            "an epoch's one is complete": on_call(PathManager, "copy", 1, afterwards, path="last"),
            "its records are on the disk": on_call(Audit, "sync", 2, afterwards),
        },
    ),
    (
        "kill in validation",
        1,
        (),
        {
            "the first": on_call(MuppetTask, "valid_step", 1, at_once),
            "a later one": on_call(MuppetTask, "valid_step", 12, at_once),
            "the first after resuming": on_call(MuppetTask, "valid_step", 2, at_once),
        },
    ),
    (
        "kill in an update",
        1,
        (),
        {
            "it is done, not recorded": on_call(Audit, "end_update", 3, at_once),
            "the first after resuming": on_call(MuppetTask, "train_step", 2, at_once),
            "it is recorded, not in a checkpoint": on_call(Audit, "end_update", 2, afterwards),
        },
    ),
    (
        "kill one worker of two",
        2,
        # which would keep the workers together
        ("--disable-validation",),
        {
            "before it records an update that the other saves": on_call(Audit, "end_update", 2, late, rank=1),
            "before a checkpoint": on_call(Audit, "sync", 2, at_once, rank=1),
            "while the other saves": on_call(Audit, "sync", 1, afterwards, rank=1),
        },
    ),
    (
        "kill one worker of two",
        2,
        (),
        {
            "in the first update": on_call(MuppetTask, "train_step", 1, at_once, rank=1),
            "the first worker, half of a checkpoint is saved": on_call(torch, "save", 2, half_saved),
            "in validation": on_call(MuppetTask, "valid_step", 4, at_once, rank=1),
        },
    ),
]


@pytest.mark.parametrize("chain", range(len(CHAINS)))
def test_killed_at_chosen_moments(data, tmp_path, tries, ledger, undisturbed, chain):
    tries(chain == 0, 1)
    row, workers, more, moments = CHAINS[chain]
    words = arguments(data, tmp_path / "run", "--update-freq", str(4 // workers), *more)
    recovery, missed = 0.0, []
    for number, (moment, fault) in enumerate([*moments.items(), ("the end", None)]):
        before = records(tmp_path / "run")
        run = Run(words, tmp_path, workers=workers, inject=fault)
        first = until_update(run, tmp_path / "run", before)
        if number and first is not None:
            recovery = max(recovery, first)
        if fault is not None:
            end_together(run)
            missed += [] if -signal.SIGKILL in run.wait() else [moment]
    finished_well = run.wait() == [0] * workers and not missed
    lost = lost_or_repeated(tmp_path / "run")
    survived = finished_well and same(tmp_path / "run", undisturbed(workers, *more)[0])
    ledger.note(row, tries=len(moments), survived=survived, lost=lost, recovery=recovery)
    assert missed == [], run.errors()
    assert survived, run.errors()
    assert lost == 0


def end_together(run: Run) -> None:
    """As torchrun does: where one worker is dead, the others are ended."""
    while all(process.is_alive() for process in run.processes):
        time.sleep(0.01)
    time.sleep(0.1)
    run.kill()


def test_killed_while_it_loses_patience(data, tmp_path, tries, ledger):
    """``--patience 2`` ends a run that learns nothing after three validations, whatever happens between them; and
    started once more it does nothing."""
    tries(0, 1)
    words = arguments(data, tmp_path / "run", "--patience", "2", "--lr", "0")
    run = Run(words, tmp_path, inject=on_call(Audit, "end_update", 5, at_once))
    assert run.wait() == [-signal.SIGKILL], run.errors()
    for _ in range(2):
        before = records(tmp_path / "run")
        run = Run(words, tmp_path)
        recovery = until_update(run, tmp_path / "run", before)
        survived = run.wait() == [0] and list(sub_batches(tmp_path / "run")) == [1, 2, 3, 4, 5]
        ledger.note("kill between two validations, with --patience", survived=survived, recovery=recovery)
        assert survived


# -- a process of its own -----------------------------------------------------------------------------


def descendants(process: int) -> set[int]:
    """The processes that this one has started, and those that they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    level = {process}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found


def test_a_killed_command_leaves_no_loader_processes(data, tmp_path, tries, ledger, undisturbed):
    """``fairseq-train`` itself, with two loader processes: they end without it, and the command goes on."""
    tries(0, 1)
    words = arguments(data, tmp_path / "run", *LOADERS)
    program = [str(Path(sysconfig.get_path("scripts")) / "fairseq-train"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "out", "ab") as out:
        process = subprocess.Popen(program, env=environment, stdout=out, stderr=out)
    while process.poll() is None and not any(map(has_update, records(tmp_path / "run"))):
        time.sleep(0.01)
    loaders = descendants(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(loaders) >= 2
    # they look every five seconds whether it is still there
    until = time.monotonic() + 30
    while any(Path(f"/proc/{loader}").exists() for loader in loaders):
        assert time.monotonic() < until, "loader processes are left"
        time.sleep(0.1)
    begin = time.monotonic()
    before = records(tmp_path / "run")
    with open(tmp_path / "out", "ab") as out:
        process = subprocess.Popen(program, env=environment, stdout=out, stderr=out)
    while process.poll() is None and not any(map(has_update, records(tmp_path / "run") - before)):
        time.sleep(0.01)
    recovery = time.monotonic() - begin
    finished_well = process.wait() == 0
    lost = lost_or_repeated(tmp_path / "run")
    survived = finished_well and same(tmp_path / "run", undisturbed(1, *LOADERS)[0])
    ledger.note("kill fairseq-train with loader processes", survived=survived, lost=lost, recovery=recovery)
    assert survived
    assert lost == 0
