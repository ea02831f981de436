"""How throughput grows with the number of workers, by backend and accumulation, and what the machine itself allows."""

from __future__ import annotations

import argparse
import math
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import muppet_fairseq
from benchmarks.measure import Target, ratio, spread, turns
from muppet_fairseq.errors import MuppetError, sentences_in
from muppet_fairseq.study import processes
from muppet_fairseq.study.commands import Command

BACKENDS = ("pytorch_ddp", "legacy_ddp")
#: without others at once, and without communication
SINGLE, APART = "1 worker", "single workers at once"
#: what a worker prints; seconds between two looks at it
_LOG, _LOOK = "train.log", 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="data-bin folder")
    parser.add_argument("--suite", required=True, help="suite file, or names with commas between")
    parser.add_argument("--arch", default="muppet_minilm", help="default: %(default)s")
    parser.add_argument("--max-positions", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of a sub-batch (default: %(default)s)")
    parser.add_argument("--workers", type=_numbers, default=[2], metavar="N,...", help="beside one (default: 2)")
    parser.add_argument("--update-freq", type=_numbers, default=[1, 4], metavar="N,...", help="default: 1,4")
    parser.add_argument("--backends", type=_names, default=list(BACKENDS), help=f"default: {','.join(BACKENDS)}")
    parser.add_argument("--parts", type=int, default=2, help="that are timed in a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of all runs, in turns (default: %(default)s)")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} has a number below 1")
    return numbers


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each ``--update-freq`` and number of workers, the efficiency of each backend.

    A run is timed in parts, which are the same sub-batches for every kind of run; the first is not counted. A worker's
    share of an update is the same for any number of workers. Efficiency is the throughput of N workers divided by N
    times that of one. The ceiling is the same for N single workers at once, which share nothing but the machine.

    Raises:
        MuppetError: a run fails.
    """
    part = math.lcm(*(workers * freq for workers in args.workers for freq in args.update_freq))
    kinds = {SINGLE: _Kind(1)}
    for workers in args.workers:
        kinds |= {f"{workers} {APART}": _Kind(1, copies=workers)}
        kinds |= {f"{workers} workers, {backend}": _Kind(workers, backend) for backend in args.backends}
    figures, targets = {}, []
    for freq in args.update_freq:
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(args.rounds):
            for name in turns(kinds, number):
                print(f"benchmarks: update-freq {freq}, round {number + 1}: {name}", file=sys.stderr)
                seconds[name] += _seconds(args, kinds[name], freq, part)
        figures[f"update-freq {freq}"], best = _compare(seconds, kinds)
        for workers, efficiency in best.items():
            what = f"efficiency of {workers} workers, update-freq {freq}"
            targets.append(Target(what, efficiency, 0.9, at_least=True).to_dict())
    return {
        "arch": args.arch,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "sub-batches of a part": part,
        "figures": figures,
        "targets": targets,
    }


@dataclass(frozen=True)
class _Kind:
    """``copies`` of a run at once, each on ``workers``."""

    workers: int
    backend: str | None = None
    copies: int = 1


def _compare(
    seconds: Mapping[str, list[float]], kinds: Mapping[str, _Kind]
) -> tuple[dict[str, dict[str, Any]], dict[int, float]]:
    """Return the figures of each kind, and the best backend's efficiency by the number of workers."""
    figures, best = {}, {}
    for name, kind in kinds.items():
        figures[name] = {"seconds": spread(seconds[name])}
        gain = ratio(seconds, SINGLE, name)["median"]
        if kind.copies > 1:
            figures[name]["ceiling"] = round(gain, 3)
        elif kind.workers > 1:
            efficiency = round(gain / kind.workers, 3)
            of_ceiling = ratio(seconds, f"{kind.workers} {APART}", name)["median"] / kind.workers
            figures[name] |= {"efficiency": efficiency, "of the ceiling": round(of_ceiling, 3)}
            best[kind.workers] = max(best.get(kind.workers, 0.0), efficiency)
    return figures, best


def _seconds(args: argparse.Namespace, kind: _Kind, freq: int, part: int) -> list[float]:
    """Seconds of each part of a run, by when the first worker logs it; of several runs at once, their mean."""
    interval = part // (kind.workers * freq)
    with tempfile.TemporaryDirectory() as folder, _started(_words(args, kind, freq, interval), kind, folder) as workers:
        logs = [Path(folder, f"{copy}-0", _LOG) for copy in range(kind.copies)]
        ends: list[list[float]] = [[] for _ in logs]
        while min(map(len, ends)) <= args.parts:
            time.sleep(_LOOK)
            for log, own in zip(logs, ends, strict=True):
                logged = log.read_text().count("| train_inner |") if log.exists() else 0
                own += [time.perf_counter()] * (logged - len(own))
            if not all(worker.is_alive() for worker in workers):
                errors = "".join(path.read_text(errors="replace") for path in Path(folder).glob("*/stderr.log"))
                why = "; ".join(dict.fromkeys(sentences_in(errors))) or errors[-1000:]
                raise MuppetError(f"a run has ended too early: {why}")
    return [sum(own[number + 1] - own[number] for own in ends) / len(ends) for number in range(args.parts)]


def _words(args: argparse.Namespace, kind: _Kind, freq: int, interval: int) -> list[str]:
    words = {
        "user-dir": Path(muppet_fairseq.__file__).parent,
        "task": "muppet",
        "suite": args.suite,
        "criterion": "muppet",
        "arch": args.arch,
        "max-positions": args.max_positions,
        "window-overlap": args.max_positions // 4,
        "max-tokens": args.max_tokens,
        "update-freq": freq,
        "optimizer": "adam",
        "clip-norm": 1.0,
        "lr": 1e-5,
        "num-workers": 0,
        "log-format": "json",
        "log-interval": interval,
    }
    if kind.backend is not None:
        words["ddp-backend"] = kind.backend
    command = ["fairseq-train", str(args.data), "--no-save", "--disable-validation", "--no-progress-bar"]
    command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
    if torch.cuda.is_available():
        return command
    if kind.workers > 1:
        # what fairseq sets by itself where there are GPUs
        command += ["--distributed-backend", "gloo", "--distributed-init-method", "env://", "--distributed-no-spawn"]
        command += ["--distributed-world-size", str(kind.workers)]
    return [*command, "--cpu"]


@contextmanager
def _started(words: Sequence[str], kind: _Kind, folder: str) -> Iterator[list[BaseProcess]]:
    """Start all workers of all copies as torchrun would, one thread each; end them in the end."""
    gpus = torch.cuda.is_available()
    workers = []
    try:
        for copy in range(kind.copies):
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(kind.workers)}
            for rank in range(kind.workers):
                own = Path(folder, f"{copy}-{rank}")
                own.mkdir()
                environment, command = {"OMP_NUM_THREADS": "1"}, list(words)
                if kind.workers > 1:
                    environment |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    command += [] if gpus else ["--distributed-rank", str(rank)]
                elif gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = str(copy)
                workers.append(processes.start(Command(tuple(command), _LOG), own, environment, gpus=gpus))
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
