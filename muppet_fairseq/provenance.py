"""With what a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version


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
    """The processors of this machine, its GPUs by name."""
    found = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    try:
        # asked of the driver's own tool: PyTorch would take a piece of the GPU's memory to answer
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return found
    return ", ".join([f"{names.count(name)} x {name}" for name in dict.fromkeys(names)] + [found])
