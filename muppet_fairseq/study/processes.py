"""Processes that do the commands of runs: one for each command, its output in files, none of them left behind."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import torch
from tqdm import tqdm

from muppet_fairseq import compat, trainer
from muppet_fairseq.models import bart, roberta  # noqa: F401 - --user-dir imports no models where it was imported before
from muppet_fairseq.study.commands import Command

_PR_SET_PDEATHSIG = 1


def start(command: Command, folder: Path, environment: Mapping[str, str], *, gpus: bool) -> BaseProcess:
    """Start a command; its output goes to files in ``folder``.

    ``fairseq-train`` and ``muppet`` are called in a copy of this process, which has imported them already; with GPUs in
    a new one, because CUDA does not survive being copied.
    """
    if not gpus:
        import_training()
    context = multiprocessing.get_context("spawn" if gpus else "fork")
    arguments = (command.words, folder / command.output, folder / "stderr.log", dict(environment), os.getpid())
    process = context.Process(target=_work, args=arguments)
    # Ctrl-C is for this process, which ends the others; while it forks, Python would lose it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process


def import_training() -> None:
    """Import what every training imports, which takes longer than a small one: forks of this process have it."""
    for module in ("fairseq_cli.train", "torch._dynamo"):
        importlib.import_module(module)


def lock(folder: Path) -> IO[str] | None:
    """Claim a run's folder for this process and what it forks; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "w")  # noqa: SIM115 - open as long as it is claimed
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    os.set_inheritable(file.fileno(), True)
    return file


def unlock(file: IO[str]) -> None:
    """Give a claim up, also that of processes which were forked meanwhile for other runs."""
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _work(words: tuple[str, ...], output: Path, errors: Path, environment: dict[str, str], parent: int) -> None:
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # forks share tqdm's own lock: one that is killed while it has it would leave all others waiting
    tqdm.set_lock(threading.RLock())
    # a log goes on where the last attempt ended; results and errors are those of this attempt
    with open(output, "ab" if output.suffix == ".log" else "wb") as out, open(errors, "wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    # a notebook or a test may have put something else there
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    programs: dict[str, Callable[[], None]] = {"fairseq-train": fairseq_train, "muppet": _muppet}
    if words[0] not in programs:
        # what kills this process's group would leave the workers without torchrun, which ends them in good order
        os.setsid()
        # torchrun and fairseq-train lie beside Python, also where its environment is not activated
        os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        os.execvp(words[0], words)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = list(words)
    try:
        programs[words[0]]()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def fairseq_train() -> None:
    """Call ``fairseq-train`` with the words of ``sys.argv``."""
    from fairseq_cli import train  # which sets up logging

    # the package was imported before
    compat.stop_where_all_is_done()
    trainer.install()
    # as fairseq-train sets it up, where nobody has done so before
    layout = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
    logging.basicConfig(format=layout, datefmt="%Y-%m-%d %H:%M:%S", level="INFO", stream=sys.stdout, force=True)
    train.cli_main()


def _muppet() -> None:
    from muppet_fairseq import cli  # which imports this module

    cli.main()


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies, even if that is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
