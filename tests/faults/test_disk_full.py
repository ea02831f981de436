"""A disk that is full while a checkpoint is written: the last good one stays, and the same command goes on from it."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.release import release
from tests.runs import Run, equal, finished, parameters
from tests.toy_suite import options, train

#: saves at 2, 4 and 6 updates, each to a file of its own and to checkpoint_last.pt; the older ones of their own go
SAVES = ("--max-update", "6", "--save-interval-updates", "2", "--keep-interval-updates", "1")
#: bytes by which the checkpoints of a run differ in size, at most
SLACK = 2048
RUN = (*SAVES, "--disable-validation", "--dropout", "0.1")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    finished(options(data, place / "run", *RUN), place / "out")
    return place / "run"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``disk(size)``: a file system of so many bytes, the same one in another size when called again."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        how = f"{'remount,' if os.path.ismount(place) else ''}size={size >> 10}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip()}); errors are injected in its place")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


def full_after(room: int) -> Callable[[int], None]:
    """What puts a full disk into a run: ``room`` bytes of checkpoints can be written, then none."""

    def inject(rank: int) -> None:
        left = [room]
        write, copyfile = checkpoint_file._Stream.write, shutil.copyfile

        def take(number: int) -> int:
            fits = min(number, left[0])
            left[0] -= fits
            return fits

        def written(stream: Any, content: Any) -> int:
            content = bytes(content)
            fits = take(len(content))
            write(stream, content[:fits])
            if fits < len(content):
                stream.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise stream.error
            return fits

        def copied(source: Any, target: Any) -> None:
            fits = take(os.path.getsize(source))
            copyfile(source, target)
            if fits < os.path.getsize(source):
                os.truncate(target, fits)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

        checkpoint_file._Stream.write, shutil.copyfile = written, copied

    return inject


def good(save_dir: Path) -> dict[str, int]:
    """The updates of each checkpoint; all must be whole, and nothing half written be left."""
    assert {path.suffix for path in save_dir.iterdir()} <= {".pt"}, list(save_dir.iterdir())
    updates = {}
    for path in save_dir.glob("*.pt"):
        updates[path.name] = checkpoint_file.read(path)["optimizer_history"][-1]["num_updates"]
    return updates


def check_sentence(run: Run, save_dir: Path) -> None:
    """The message tells what is on the disk."""
    (sentence,) = run.sentences()
    assert "Traceback" not in run.errors()
    match = re.fullmatch(
        r"cannot write (\S+) \(No space left on device: ([0-9.]+) MB needed, [0-9.,]+ MB free\); (.*)", sentence
    )
    assert match, sentence
    assert Path(match[1]).parent == save_dir
    assert 0.1 < float(match[2]) < 10
    updates = good(save_dir)
    if not updates:
        assert match[3] == "there is no other checkpoint of this run: make room, and start it again"
        return
    named = re.match(r"the last good checkpoint is (\S+) \(of update (\d+)\): make room, and (.*)", match[3])
    assert named, sentence
    assert updates[Path(named[1]).name] == int(named[2]) == max(updates.values())
    if Path(named[1]).name == "checkpoint_last.pt":
        assert named[3] == "the same command goes on from there"
    elif "checkpoint_last.pt" in updates:
        last = save_dir / "checkpoint_last.pt"
        assert named[3] == f"the same command goes on from {last} (of update {updates[last.name]})"
    else:
        assert named[3] == f"go on from it with --restore-file {named[1]}"


def goes_on(arguments: list[str], folder: Path, save_dir: Path, reference: Path) -> float:
    """Seconds that the same command, with room, takes to be where the undisturbed run is, bit for bit."""
    started = time.monotonic()
    finished(arguments, folder)
    assert equal(parameters(save_dir), parameters(reference))
    return time.monotonic() - started


def test_full_after_any_number_of_bytes(data, undisturbed, tmp_path, tries, ledger):
    size = (undisturbed / "checkpoint_last.pt").stat().st_size
    rng = random.Random("full disk")
    # of three saves; in a try each, in both files of each, at its end and anywhere
    rooms = [rng.randrange(6) * size + rng.choice([0, size - 1, rng.randrange(size)]) for _ in range(tries(1, 20))]
    for number, room in enumerate(rooms):
        save_dir = tmp_path / str(number)
        arguments = options(data, save_dir, *RUN)
        run = Run(arguments, tmp_path / "out", inject=full_after(room))
        statuses = run.wait()
        try:
            assert statuses == [1], run.errors()
            check_sentence(run, save_dir)
            # files that were finished before, less those that a whole newer one made superfluous; sizes differ a little
            done = {(room + some) // size for some in (-SLACK, 0, SLACK)}
            assert len(good(save_dir)) in {min(files, 2) + (files in (3, 5)) for files in done}, (room, good(save_dir))
            recovery = goes_on(arguments, tmp_path / "out", save_dir, undisturbed)
        except BaseException:
            ledger.note("disk full while saving, after any byte", survived=False)
            raise
        ledger.note("disk full while saving, after any byte", survived=True, recovery=recovery)


@pytest.mark.parametrize("files", [0.5, 1.5, 2.5, 3.5])
def test_a_disk_that_is_too_small(data, undisturbed, tmp_path, disk, tries, ledger, files):
    """A real one with room for so many checkpoints: full at the first, in its copy, at the second, in its copy."""
    tries(files == 2.5, 1)
    size = (undisturbed / "checkpoint_last.pt").stat().st_size
    save_dir = disk(int(files * size)) / "run"
    arguments = options(data, save_dir, *RUN)
    run = Run(arguments, tmp_path / "out")
    statuses = run.wait()
    ledger.note("disk full while saving, real", survived=statuses == [1])
    assert statuses == [1], run.errors()
    check_sentence(run, save_dir)
    assert len(good(save_dir)) == int(files)
    disk(8 * size)
    goes_on(arguments, tmp_path / "out", save_dir, undisturbed)


def test_the_command_itself(data, undisturbed, disk, tries, ledger):
    tries(0, 1)
    size = (undisturbed / "checkpoint_last.pt").stat().st_size
    save_dir = disk(int(2.5 * size))
    done = train(options(data, save_dir, *RUN))
    ledger.note("disk full while saving, real", survived=done.returncode == 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"the last good checkpoint is {save_dir}/checkpoint_last.pt (of update 2)" in done.stderr


def test_two_workers_end(data, undisturbed, tmp_path, tries, ledger):
    """The one that writes nothing does not wait for the other."""
    tries(0, 1)
    size = (undisturbed / "checkpoint_last.pt").stat().st_size
    save_dir = tmp_path / "run"
    arguments = options(data, save_dir, *RUN, "--update-freq", "2")
    run = Run(arguments, tmp_path / "out", workers=2, inject=full_after(3 * size))
    statuses = run.wait(60)
    ledger.note("disk full while saving, two workers", survived=all(statuses))
    assert all(statuses), statuses
    check_sentence(run, save_dir)
    finished(arguments, tmp_path / "out", workers=2)


@pytest.mark.parametrize("what", ["tensorboard", "log file"])
def test_a_full_disk_of_the_logs(data, tmp_path, disk, tries, ledger, what):
    """The run ends with a sentence or goes on without its log; the checkpoints are whole."""
    tries(0, 1)
    place = disk(1 << 14)
    (place / "ballast").write_bytes(bytes(1 << 13))
    more = ("--tensorboard-logdir", str(place / "tb")) if what == "tensorboard" else ("--log-file", str(place / "log"))
    run = Run(options(data, tmp_path / "run", *RUN, *more), tmp_path / "out")
    (status,) = run.wait()
    survived = status == 0 or len(run.sentences()) == 1
    ledger.note(f"disk full for the {what}", survived=survived)
    assert survived, run.errors()[-3000:]
    good(tmp_path / "run")


@pytest.mark.parametrize("end", ["", ".tar.gz"])
def test_a_release_on_a_full_disk(data, undisturbed, disk, ledger, end):
    place = disk(1 << 17)
    with pytest.raises(MuppetError) as caught:
        release(undisturbed / "checkpoint_last.pt", place / f"out{end}", data)
    survived = not list(place.iterdir())
    ledger.note("disk full for a release", survived=survived)
    assert survived
    assert str(caught.value) == (
        f"cannot write {place / f'out{end}'} (No space left on device); make room or name another place"
    )


def test_what_a_killed_run_left_half_written_goes(data, undisturbed, tmp_path):
    save_dir = tmp_path / "run"
    save_dir.mkdir()
    for name in ("checkpoint_1_2.pt.tmp", "checkpoint_last.pt.tmp", "notes.tmp"):
        (save_dir / name).write_bytes(b"half")
    finished(options(data, save_dir, *RUN), tmp_path / "out")
    assert sorted(path.name for path in save_dir.glob("*.tmp")) == ["notes.tmp"]


def test_nothing_goes_before_the_new_one_is_whole(tmp_path, monkeypatch):
    """Neither the old file of the same name, nor is the new one named before it is on the disk."""
    path = tmp_path / "checkpoint_1_2.pt"
    steps = []
    replace, fsync = os.replace, os.fsync

    def noted_replace(source: Path, target: Path) -> None:
        checkpoint_file.read(Path(source))
        steps.append("named")
        replace(source, target)

    def noted_fsync(number: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        fsync(number)

    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    from fairseq import checkpoint_utils

    checkpoint_utils.torch_persistent_save({"model": torch.zeros(3)}, str(path))
    checkpoint_utils.PathManager.copy(str(path), str(tmp_path / "checkpoint_last.pt"), overwrite=True)
    assert steps == ["file", "named", "folder"] * 2
