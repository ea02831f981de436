"""Make .venv for the Makefile: PyTorch, then this project with what its tests need. Safe to repeat.

Run by the Python that .venv shall have. Reads ``TORCH`` (what to ask pip for) and ``PYTHON`` (set when the
user chose this Python, so that a .venv of another version is made anew).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
#: written last; says what .venv was made from
STAMP = VENV / ".ready"
LOG = VENV / "setup.log"
INPUTS = ("setup.py", "pyproject.toml", ".ci/make_venv.py")
#: asked for before anything else: where pip finds CPU builds, 2.13.0+cpu counts as newer than 2.13.0 and is
#: taken; left to the requirements, pip would take the newest of all, with gigabytes of CUDA libraries
TORCH = "torch==2.13.0"


class StepError(Exception):
    """A step of the set-up failed; the message says which."""


def main() -> int:
    os.chdir(ROOT)
    started = time.monotonic()
    try:
        with only_one_at_a_time():
            wanted = {
                "torch": os.environ.get("TORCH") or recorded().get("torch") or TORCH,
                "python": version_of(sys.executable),
                "inputs": hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest(),
            }
            if recorded() != wanted:
                say(f"setting up .venv with Python {wanted['python']}; the first time takes minutes")
                install(wanted["torch"])
                temporary = STAMP.with_suffix(".partial")
                temporary.write_text(json.dumps(wanted))
                os.replace(temporary, STAMP)
                say(f".venv is ready ({time.monotonic() - started:.0f} s)")
            STAMP.touch()  # an input that was only touched must not start make again
    except StepError as error:
        print(f"muppet: {error}; mend that and run make again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("muppet: set-up interrupted; the next make goes on with it", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold a lock that ends with the process: a second make waits and then finds everything done."""
    with open(ROOT / "Makefile", "r+") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recorded() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def version_of(python: str | Path) -> str | None:
    """Return "3.11" or the like; None for a Python that does not run."""
    command = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def install(torch: str) -> None:
    STAMP.unlink(missing_ok=True)
    fresh = [] if version_of(VENV_PYTHON) == version_of(sys.executable) else ["--clear"]
    created = subprocess.run([sys.executable, "-m", "venv", *fresh, str(VENV)], capture_output=True, text=True)
    if created.returncode:
        raise StepError(f"{sys.executable} -m venv failed: {(created.stdout + created.stderr).strip()}")
    LOG.unlink(missing_ok=True)
    pip(torch, *shlex.split(torch))
    pip("muppet_fairseq and what its tests need", "--editable", ".[dev]")
    # C++ without wheels, which asks for Cython too late
    fast_bpe = ("--no-build-isolation", "--editable", ".[fastbpe]")
    pip_if_possible("fastBPE, which tests compare with", ("cython>=3",), fast_bpe)
    pip_if_possible("fairscale, which shards models in tests", ("--editable", ".[fairscale]"))
    # fairseq asks for it and does not need it here; beside a CPU build of PyTorch it may not load, and transformers,
    # which imports it where it is installed, then does not either
    if subprocess.run([str(VENV_PYTHON), "-c", "import torchaudio"], capture_output=True).returncode:
        subprocess.run([str(VENV_PYTHON), "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio"], check=False)


def pip_if_possible(what: str, *steps: tuple[str, ...]) -> None:
    try:
        for arguments in steps:
            pip(what, *arguments)
    except StepError as error:
        say(f"{error}; the tests that need it are skipped")


def pip(what: str, *arguments: str) -> None:
    """Run ``pip install`` into the log, of which the end is shown if it fails."""
    say(f"installing {what}")
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    with open(LOG, "a") as log:
        command = [str(VENV_PYTHON), "-m", "pip", "install", *options, *arguments]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        # warnings are about places that pip looked at in vain; the reason for a failure is an error
        lines = [line for line in LOG.read_text().splitlines() if not line.startswith("WARNING")]
        print("\n".join(lines[-15:]), file=sys.stderr)
        raise StepError(f"pip could not install {what} (all it said is in {LOG.relative_to(ROOT)})")


def say(message: str) -> None:
    print(f"muppet: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
