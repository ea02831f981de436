"""With what a result was made."""

from __future__ import annotations

import platform
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
