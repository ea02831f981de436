"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from muppet_fairseq.errors import FULL, MuppetError


def unwritable(path: Path, error: OSError | RuntimeError) -> MuppetError:
    """Say that ``path`` cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    room = "make room or " if getattr(error, "errno", None) in FULL else ""
    return MuppetError(f"cannot write {path} ({reason}); {room}name another place")


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, which gets that name when the block ends without an error.

    Args:
        replace: what bears the name already is removed then; without it, it is an error of the system.

    Raises:
        MuppetError: something cannot be written.
    """
    target = path.resolve()
    temporary, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if replace and target.exists():
            os.replace(target, replaced)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        raise unwritable(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def read_up_to(path: Path, most: int) -> bytes:
    """Return a file's content. Raises ValueError, without reading on, if it has more than ``most`` bytes."""
    with path.open("rb") as stream:
        about = os.fstat(stream.fileno())
        # a pipe or a device does not say how much there is; and what is asked for is set aside at once
        there = about.st_size if stat.S_ISREG(about.st_mode) else most + 1
        if about.st_size <= most and len(content := stream.read(there)) <= most:
            return content
    raise ValueError(f"it has more than {most:,} bytes")


def write_text(path: Path, text: str) -> None:
    """Write a text file, its folder made if missing. Raises MuppetError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, its folder made if missing. Raises MuppetError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from None
