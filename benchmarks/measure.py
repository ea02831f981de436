"""How everything here is measured: kinds of doing the same in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Target:
    """What a benchmark is to reach.

    Attributes:
        what: the figure in words, with its unit.
        value: what was measured.
        bound: what it must be at least (``at_least``) or at most.
    """

    what: str
    value: float
    bound: float
    at_least: bool

    def to_dict(self) -> dict[str, Any]:
        """The attributes, and whether the bound was ``reached``."""
        reached = self.value >= self.bound if self.at_least else self.value <= self.bound
        return asdict(self) | {"reached": bool(reached)}


def in_turns(
    kinds: Mapping[str, Callable[[int], Any]], rounds: int, *, warm_up: int = 2, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time each kind once a round, in :func:`turns`.

    Args:
        kinds: each is called with the number of the round, from 0.
        rounds: that are counted.
        warm_up: rounds before, which are not.
        device: what is waited for, before and after.

    Returns:
        Seconds, one for each round.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in tqdm(range(warm_up + rounds), unit=" rounds", disable=None, leave=False):
        for kind in turns(kinds, number):
            _wait(device)
            started = time.perf_counter()
            kinds[kind](number)
            _wait(device)
            if number >= warm_up:
                seconds[kind].append(time.perf_counter() - started)
    return seconds


def turns(kinds: Mapping[str, Any], number: int) -> list[str]:
    """The order of a round: every other one goes backwards, for the first kind finds colder caches."""
    return list(kinds) if number % 2 else list(reversed(kinds))


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, Any]:
    """The median, the quartiles and how many values there were."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": _short(median), "quartiles": [_short(low), _short(high)], "n": len(values)}


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> dict[str, Any]:
    """:func:`spread` of ``of``'s seconds divided by ``to``'s of the same round."""
    return spread([a / b for a, b in zip(seconds[of], seconds[to], strict=True)])


def compared(seconds: Mapping[str, list[float]], of: str, to: str) -> dict[str, Any]:
    """:func:`spread` of each kind's seconds, and :func:`ratio`."""
    return {kind: spread(values) for kind, values in seconds.items()} | {"ratio": ratio(seconds, of, to)}


def memory(pid: int | str) -> dict[str, float]:
    """Memory of a process in MB: its own (``anonymous``), pages of files (``files``), and the most of both together
    (Linux only)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    names = {"anonymous": "RssAnon", "files": "RssFile", "peak": "VmHWM"}
    return {name: int(fields[field].split()[0]) * 1024 / 1e6 for name, field in names.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
