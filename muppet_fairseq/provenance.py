"""With what a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that decide about its numbers."""
    found = {"python": platform.python_version()}
    for name in ("muppet_fairseq", "torch", "ve-fairseq", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout, or another build under another name
            found[name] = "not installed as a package"
    return found


@cache
def hardware() -> str:
    """The processors of this machine with the vector instructions that PyTorch uses, its GPUs by name.

    On a processor of another kind sums are taken in another order, so the last digits of what is trained may differ.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    found = f"{os.cpu_count()} CPU cores, {_processor()}, {vectors}"
    try:
        # asked of the driver's own tool: PyTorch would take a piece of the GPU's memory to answer
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return found
    return ", ".join([f"{names.count(name)} x {name}" for name in dict.fromkeys(names)] + [found])


def _processor() -> str:
    """Its name; the architecture's where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
