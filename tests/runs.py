"""Training runs as forks of this process: they start in half a second, and a test can change what is in them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from muppet_fairseq import errors
from muppet_fairseq.study import processes


class Run:
    """``fairseq-train`` on ``workers`` processes, with their output in ``folder``.

    Args:
        arguments: of ``fairseq-train``, as :func:`tests.toy_suite.options` gives them; ``--update-freq`` is that of
            each worker.
        folder: gets ``worker-0.out`` and ``worker-0.err`` and so on; a second run there appends.
        workers: with more than one they find each other through the first, over gloo.
        inject: called in each worker with its rank before it begins: puts a fault there, say.
        memory: of each worker's address space, bytes more than this process has; beyond them it gets MemoryError.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        workers: int = 1,
        inject: Callable[[int], Any] | None = None,
        memory: int | None = None,
    ) -> None:
        processes.import_training()
        self.folder, self.workers = folder, workers
        folder.mkdir(parents=True, exist_ok=True)
        before = [self._file(rank, "err") for rank in range(workers)]
        self._begins = [file.stat().st_size if file.exists() else 0 for file in before]
        self.started = time.monotonic()
        words = ["fairseq-train", *arguments]
        address: dict[str, str] = {}
        if workers > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers)}
            if "--ddp-backend" not in words:
                words += ["--ddp-backend", "legacy_ddp"]
            words += ["--distributed-backend", "gloo", "--distributed-init-method", "env://"]
            words += ["--distributed-world-size", str(workers), "--distributed-no-spawn"]
        context = multiprocessing.get_context("fork")
        self.processes: list[BaseProcess] = [
            context.Process(target=self._work, args=(rank, words, address, inject, memory)) for rank in range(workers)
        ]
        for process in self.processes:
            process.start()

    def _file(self, rank: int, suffix: str) -> Path:
        return self.folder / f"worker-{rank}.{suffix}"

    def _work(
        self,
        rank: int,
        words: list[str],
        address: dict[str, str],
        inject: Callable[[int], Any] | None,
        memory: int | None,
    ) -> None:
        with open(self._file(rank, "out"), "ab") as out, open(self._file(rank, "err"), "ab") as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of which there is a word on standard error after a fork
        # pytest has put its own there
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.excepthook = sys.__excepthook__
        errors.report_without_traceback()
        torch.set_num_threads(1)
        if address:
            os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
            words = [*words, "--distributed-rank", str(rank)]
        if memory is not None:
            limit = _address_space() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if inject is not None:
            inject(rank)
        sys.argv = words
        try:
            processes.fairseq_train()
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)

    def kill(self, rank: int | None = None, number: int = signal.SIGKILL) -> None:
        """Send a signal to one worker, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    def wait(self, timeout: float = 120) -> list[int]:
        """The exit statuses of all workers, a signal's as a negative number. Kills them and raises TimeoutError."""
        until = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        if any(process.exitcode is None for process in self.processes):
            self.kill()
            raise TimeoutError(f"the run in {self.folder} did not end within {timeout:g} s")
        return [int(process.exitcode or 0) for process in self.processes]

    def errors(self, rank: int = 0) -> str:
        """What a worker has written to standard error in this run."""
        with open(self._file(rank, "err"), "rb") as file:
            file.seek(self._begins[rank])
            return file.read().decode(errors="replace")

    def sentences(self, rank: int = 0) -> list[str]:
        """The sentences of errors in it, without ``muppet: `` and the rank that PyTorch puts before it."""
        return errors.sentences_in(self.errors(rank))


def finished(arguments: Sequence[str], folder: Path, **keywords: Any) -> Run:
    """A run that must succeed."""
    run = Run(arguments, folder, **keywords)
    statuses = run.wait()
    assert not any(statuses), (statuses, *(run.errors(rank)[-2000:] for rank in range(run.workers)))
    return run


def parameters(save_dir: Path) -> dict[str, torch.Tensor]:
    """Parameters and optimizer state of a run's last checkpoint."""
    checkpoint = torch.load(save_dir / "checkpoint_last.pt", weights_only=True)
    tensors = dict(checkpoint["model"])
    for number, values in checkpoint["last_optimizer_state"]["state"].items():
        tensors |= {f"{number}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def equal(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> bool:
    """Whether two runs have the same parameters and optimizer state, bit for bit."""
    return ours.keys() == reference.keys() and all(ours[key].equal(reference[key]) for key in reference)


def _address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
