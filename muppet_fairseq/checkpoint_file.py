"""Checkpoint files of anybody: read without running what they may hold, written whole or not at all."""

from __future__ import annotations

import argparse
import os
import re
import reprlib
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError

#: what a checkpoint's containers may hold, all of them together, each as often as it is named: a real one has thousands
MAX_VALUES = 1 << 19
#: how deep they may lie in each other
MAX_DEPTH = 64

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device, np.generic)
#: in PyTorch's messages: what a file wanted to import or to call
_FORBIDDEN = re.compile(r"GLOBAL (\S+)|unrecognized function (.+)|unsupported class (\S+)")
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def allow_checkpoint_types() -> None:
    """torch >= 2.6 unpickles only known types, and ve-fairseq 0.12.3 asks for no others: no run could resume.

    fairseq's checkpoints hold the model's arguments as a Namespace and, in some meters, numpy scalars. Both are
    plain data; everything else stays refused.
    """
    codes = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
    numpy_types = {np.dtype, *(type(np.dtype(code)) for code in codes)}
    scalar = np.float64(0).__reduce__()[0]
    # numpy 2 moved it; checkpoints keep the name of the numpy that wrote them
    names = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    torch.serialization.add_safe_globals([argparse.Namespace, *names, *numpy_types])


def require_file(path: Path) -> int:
    """Return the size of a file; a pipe would be waited for. Raises MuppetError where it is none, or missing."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a name may hold what no name can
        raise MuppetError(
            f"the checkpoint {path} cannot be read ({getattr(error, 'strerror', None) or error}); name another one"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise MuppetError(f"the checkpoint {path} cannot be read (it is {kind}); name a file")
    return status.st_size


def read(path: Path, *, mapped: bool = False, cure: str = "take another one") -> Any:
    """Read what ``torch.save`` has written, in either of its formats; tensors go to the CPU and no code is run.

    Everything in it is a tensor with memory of its own or a plain value, there is no more of it than the file can hold,
    and a file whose checksums do not agree is refused (of a run's checkpoint that is ``mapped``, a flipped bit may be
    seen only in what is used).

    Args:
        mapped: tensors that are not used are not read: an optimizer's state may be twice the model.
        cure: what to do about a file that holds code; one that is damaged may also be copied again.

    Raises:
        MuppetError: the file is missing, damaged, or holds code.
    """
    size = require_file(path)
    zipped = False
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_sizes(path, size)
        # said explicitly, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not change it
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except OSError as error:
        raise MuppetError(
            f"the checkpoint {path} cannot be read ({error.strerror or error}); name another one"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything, and PyTorch's advice is to switch its check off
        found = _FORBIDDEN.search(str(error))
        if found is None or (zipped and not _is_whole(path)):
            raise _damaged(path, _reason(error, size), cure) from None
        forbidden = reprlib.repr(next(filter(None, found.groups()))).strip("'\"")
        raise MuppetError(
            f"{path} holds code besides tensors and plain values ({forbidden}), which is never run; {cure}"
        ) from None
    _check_content(content, path, size, cure)
    # PyTorch does not look at checksums; a run's own checkpoint, three times as large, has not travelled
    trains = isinstance(content, dict) and content.get("last_optimizer_state") is not None
    if zipped and not (mapped and trains) and not _is_whole(path):
        raise _damaged(path, "its checksums do not agree", cure)
    return content


def check_options(state: dict[str, Any], path: Path) -> None:
    """Refuse options that OmegaConf would look up elsewhere, as in the environment. Raises MuppetError."""
    for key in ("cfg", "args"):
        for value in _values(state.get(key)):
            if isinstance(value, str) and "${" in value:
                raise MuppetError(
                    f"{path} has options that are to be looked up elsewhere ({reprlib.repr(value)}), which is not "
                    "done; take another one"
                )


def write(state: Any, path: Path) -> None:
    """Write a file with ``torch.save``, to the disk itself. Raises OSError; what is written then is of no use."""
    with open(path, "wb") as file:
        stream = _Stream(file)
        try:
            torch.save(state, stream)
            file.flush()
        except RuntimeError:
            # PyTorch's says where in its code, not why
            if stream.error is not None:
                raise stream.error from None
            raise
        os.fsync(file.fileno())


def replace(temporary: Path, path: Path) -> None:
    """Give a file that is on the disk its name, so that after a loss of power there is the old one or the new one."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # some network file systems have no such thing
        with suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def num_bytes(state: Any) -> int:
    """What the tensors in ``state`` take, each memory once."""
    tensors = (value.untyped_storage() for value in _values(state) if isinstance(value, Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in tensors}.values())


class _Stream:
    """Keeps the error of the system, which PyTorch's writer replaces by its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        # PyTorch's writer goes on to its end
        if self.error is not None:
            raise self.error
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _damaged(path: Path, reason: str, cure: str) -> MuppetError:
    return MuppetError(f"{path} is damaged, or no checkpoint ({reason}); copy it again, or {cure}")


def _reason(error: Exception, size: int) -> str:
    if size == 0:
        return "it is empty"
    if "TorchScript" in str(error):
        return "it is a program of TorchScript"
    if "legacy .tar" in str(error):
        return "it is of PyTorch's oldest format"
    # PyTorch's advice begins with the second sentence
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError) and str(error).startswith("it "):
        return str(error)
    return "it is cut off or is another kind of file"


def _check_sizes(path: Path, size: int) -> None:
    """What ``torch.save`` writes is not compressed, so that reading takes no more than the file has."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("it says that it holds more than its own size")


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # as in read
        return False


def _values(content: Any) -> Iterator[Any]:
    """All values and keys in ``content``, each as often as it is reached. Raises ValueError where there is no end."""
    stack, seen = [(content, 0)], 0
    while stack:
        value, depth = stack.pop()
        seen += 1
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError("it is nested without end")
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, dict):
            stack.extend((part, depth + 1) for item in value.items() for part in item)
        elif isinstance(value, list | tuple | set):
            stack.extend((part, depth + 1) for part in value)
        else:
            yield value


def _check_content(content: Any, path: Path, size: int, cure: str) -> None:
    memories = {}
    try:
        for value in _values(content):
            if type(value) in (Tensor, nn.Parameter):
                memory = _memory(value)
                memories[memory.data_ptr()] = memory.nbytes()
            elif not isinstance(value, _PLAIN):
                raise ValueError(f"it holds a {type(value).__name__}")
        if sum(memories.values()) > size:
            raise ValueError("it says that it holds more than its own size")
    except ValueError as error:
        raise _damaged(path, str(error), cure) from None


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError("it holds a tensor that is not dense")
    memory = tensor.untyped_storage()
    # an expanded one may claim any size
    if tensor.numel() * tensor.element_size() > memory.nbytes():
        raise ValueError("it holds a tensor that is larger than its memory")
    return memory
