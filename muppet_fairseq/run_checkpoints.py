"""The checkpoints of a run: what replaces ve-fairseq 0.12.3's reading and writing of them.

It reads whatever a file holds, hangs the other workers when the first one cannot read it, and leaves a user with a
traceback where a file is damaged or the disk is full.
"""

from __future__ import annotations

import logging
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import FULL, MuppetError, sentence_of

logger = logging.getLogger(__name__)

LAST = "checkpoint_last.pt"
#: ends the name of what is being written, as in fairseq
TEMPORARY = ".tmp"

#: stands for the checkpoint that the first worker hands to the others: the sentence that refuses it
_REFUSED = "muppet_refused"
#: whether other workers wait for what is read
_awaited: ContextVar[bool] = ContextVar("_awaited", default=False)
#: of an optimizer's state, what has the shape of the parameter
_ELEMENTWISE = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum"}

_read_remotely = checkpoint_utils.load_checkpoint_to_cpu
_load_checkpoint = checkpoint_utils.load_checkpoint
_save_asynchronously = checkpoint_utils.torch_persistent_save
_copy_in_place = PathManager.copy
_verify_directory = checkpoint_utils.verify_checkpoint_directory


def install() -> None:
    """Put all this in the place of fairseq's own."""
    checkpoint_file.allow_checkpoint_types()
    checkpoint_utils.load_checkpoint_to_cpu = load_to_cpu
    checkpoint_utils.load_checkpoint = load
    checkpoint_utils.torch_persistent_save = save
    checkpoint_utils.verify_checkpoint_directory = prepare_folder
    distributed_utils._broadcast_object_slow = _broadcast_object
    PathManager.copy = staticmethod(copy_whole)


# -- reading ------------------------------------------------------------------------------------------


def load_to_cpu(
    path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """fairseq's ``load_checkpoint_to_cpu``, through :func:`checkpoint_file.read`. Raises MuppetError."""
    if PathManager.path_requires_pathmanager(path):
        return _read_remotely(path, arg_overrides, load_on_all_ranks)
    try:
        return _upgraded(Path(path), arg_overrides)
    except MuppetError as error:
        if not _awaited.get() or load_on_all_ranks:
            raise
        return {_REFUSED: str(error)}


def _upgraded(path: Path, overrides: dict[str, Any] | None) -> dict[str, Any]:
    state = checkpoint_file.read(path)
    _check(state, path)
    with _said_of(path):
        if state.get("args") is not None:
            vars(state["args"]).update(overrides or {})
        if state.get("cfg") is not None:
            state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
            if overrides is not None:
                overwrite_args_by_name(state["cfg"], overrides)
        return checkpoint_utils._upgrade_state_dict(state)


def _check(state: Any, path: Path) -> None:
    """What fairseq and PyTorch take as it comes, and would stumble over later."""
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise _no_checkpoint(path, "it has no model")
    # with PyTorch's notes on its modules, which could change how tensors are taken over
    model = state["model"] = dict(state["model"])
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _no_checkpoint(path, f"{str(name)[:80]!r} of its model is no tensor")
    checkpoint_file.check_options(state, path)
    with _said_of(path):
        for entry in state.get("optimizer_history") or ():
            _require_numbers({"num_updates": entry.get("num_updates")} | (entry.get("lr_scheduler_state") or {}))
        extra = state.get("extra_state") or {}
        _require_numbers({key: extra.get(key) for key in ("best", "val_loss", "previous_training_time")})
        for aggregate in extra.get("metrics", {}).values():
            for _, _, meter, values in aggregate:
                if not meter.endswith("Meter"):
                    raise ValueError(f"{meter} is no meter")
                _require_numbers(values)
        iterator = extra.get("train_iterator") or {}
        _require_numbers(iterator.get("companion", {}).get("running_losses", {}))
        for key in ("epoch", "iterations_in_epoch", "sub_batches_done", "sub_batches_per_update"):
            if not isinstance(iterator.get(key, 1), int) or not 0 <= iterator.get(key, 1) < 1 << 31:
                raise ValueError(f"its {key} is {reprlib.repr(iterator[key])}")


def _require_numbers(values: dict[str, Any]) -> None:
    for key, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not isinstance(number, Real | torch.Tensor):
                raise TypeError(f"{key} is no number")


def _no_checkpoint(path: Path, reason: str) -> MuppetError:
    return MuppetError(
        f"{path} is no checkpoint that fairseq's trainer can load ({reason}); name one of a run or of 'muppet release'"
    )


@contextmanager
def _said_of(path: str | Path) -> Iterator[None]:
    """Turn what fairseq stumbles over in a checkpoint's content into one sentence."""
    try:
        yield
    except Exception as error:
        cause = _root(error)
        elsewhere = isinstance(cause, torch.OutOfMemoryError | torch.distributed.DistError | OSError)
        if sentence_of(error) is not None or elsewhere or "gloo" in str(cause):
            raise
        logger.debug("loading %s", path, exc_info=error)
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise _no_checkpoint(Path(path), reason[:200]) from error


def _root(error: BaseException) -> BaseException:
    # the trainer says "Cannot load model parameters" in place of what was wrong
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def load(cfg: Any, trainer: Any, **arguments: Any) -> tuple[dict[str, Any] | None, Any]:
    """fairseq's ``load_checkpoint``: start from the checkpoint of the options, if they name one or there is a last one.

    Raises:
        MuppetError: it is missing, or not what it should be; every worker says so.
    """
    path = _path_of(cfg, trainer.checkpoint_suffix)
    token = _awaited.set(trainer.data_parallel_world_size > 1)
    try:
        if path is not None and not PathManager.path_requires_pathmanager(str(path)):
            checkpoint_file.require_file(path)
            trainer.load_checkpoint = partial(_into, trainer.load_checkpoint, trainer)
        return _load_checkpoint(cfg, trainer, **arguments)
    except MuppetError as error:
        if path is None or path.parent != Path(cfg.save_dir) or str(path) not in str(error):
            raise
        whole = _newest_whole(path)
        if whole is None:
            raise
        other, updates = whole
        raise MuppetError(
            f"{error}; {other} (of update {updates}) is whole: go on from it with --restore-file {other}"
        ) from None
    finally:
        vars(trainer).pop("load_checkpoint", None)
        _awaited.reset(token)


def _into(load_checkpoint: Callable[..., Any], trainer: Any, path: str, *arguments: Any, **keywords: Any) -> Any:
    with _said_of(path):
        extra_state = load_checkpoint(path, *arguments, **keywords)
        _check_optimizer(trainer.optimizer)
        return extra_state


def _path_of(cfg: Any, suffix: str) -> Path | None:
    """The checkpoint that a run starts from, as fairseq chooses it; None for a run that starts from nothing."""
    last = Path(cfg.save_dir) / f"checkpoint_last{suffix}.pt"
    if cfg.restore_file != LAST:
        named = Path(cfg.restore_file.replace(".pt", f"{suffix}.pt"))
        # of a run that is always started with the name of its own last checkpoint, the first start
        return named if os.path.lexists(named) or named.resolve() != last.resolve() else None
    if os.path.lexists(last):
        return last
    named = getattr(cfg, "continue_once", None) or cfg.finetune_from_model
    return Path(named) if named else None


def _check_optimizer(optimizer: Any) -> None:
    """PyTorch takes over an optimizer's state as it is, whatever its shapes."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for group in inner.param_groups:
        for parameter in group["params"]:
            for name, value in inner.state.get(parameter, {}).items():
                # SGD's without momentum
                if value is None and name == "momentum_buffer":
                    continue
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
                if name in _ELEMENTWISE and shape != tuple(parameter.shape):
                    raise ValueError(f"its optimizer's {name} has shape {shape}, not {tuple(parameter.shape)}")
                if value is None:
                    raise ValueError(f"its optimizer's {name} is missing")
                _require_numbers({name: value})


def _broadcast_object(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
    """Hand a loaded checkpoint from the first worker to the others; fairseq does so with ``torch.load``, which refuses
    its configuration. What was checked when the file was read is not checked again."""
    holder = [obj]
    torch.distributed.broadcast_object_list(holder, src=src_rank, group=group, device=dist_device)
    if isinstance(holder[0], dict) and _REFUSED in holder[0]:
        raise MuppetError(holder[0][_REFUSED])
    return holder[0]


# -- writing ------------------------------------------------------------------------------------------


def save(state: dict[str, Any], filename: str, async_write: bool = False) -> None:
    """fairseq's ``torch_persistent_save``: there is the old file or the new one, whenever the run or the power ends.

    Raises:
        MuppetError: it cannot be written.
    """
    if async_write or not PathManager.supports_rename(filename):
        _save_asynchronously(state, filename, async_write=async_write)
        return
    path, temporary = Path(filename), Path(f"{filename}{TEMPORARY}")
    try:
        checkpoint_file.write(state, temporary)
        checkpoint_file.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        _remove(temporary)
        problem = _unwritable(path, error, checkpoint_file.num_bytes(state))
        # the trainer writes it on its way out, with an error of its own
        if path.name == "crash.pt":
            logger.error("%s", problem)
            return
        raise problem from None
    except BaseException:
        _remove(temporary)
        raise


def copy_whole(source: str, target: str, overwrite: bool = False) -> bool:
    """``PathManager.copy``, by which a new checkpoint becomes ``checkpoint_last.pt``; fairseq writes over that.

    Raises:
        MuppetError: it cannot be written.
    """
    if not PathManager.supports_rename(target):
        return _copy_in_place(source, target, overwrite)
    temporary = Path(f"{target}{TEMPORARY}")
    try:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        checkpoint_file.replace(temporary, Path(target))
    except OSError as error:
        _remove(temporary)
        raise _unwritable(Path(target), error, os.path.getsize(source)) from None
    except BaseException:
        _remove(temporary)
        raise
    return True


def prepare_folder(save_dir: str) -> None:
    """fairseq's ``verify_checkpoint_directory``, before a run begins; what a killed run has left half written goes.

    Raises:
        MuppetError: nothing can be written there.
    """
    try:
        _verify_directory(save_dir)
        for temporary in Path(save_dir).glob(f"checkpoint*.pt{TEMPORARY}"):
            temporary.unlink()
    except OSError as error:
        raise MuppetError(
            f"cannot write to {save_dir} ({error.strerror or error}); make room there, or name another --save-dir"
        ) from None


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink()


def _unwritable(path: Path, error: OSError | RuntimeError, needed: int) -> MuppetError:
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    if getattr(error, "errno", None) in FULL:
        reason += f": {_megabytes(needed)} needed, {_megabytes(shutil.disk_usage(path.parent).free)} free"
    good = _checkpoints(path.parent)
    if not good:
        return MuppetError(
            f"cannot write {path} ({reason}); there is no other checkpoint of this run: make room, and start it again"
        )
    newest = max(good, key=good.get)
    last = path.with_name(LAST)
    again = "the same command goes on from there"
    if newest != last and good.get(last) != good[newest]:
        again = f"go on from it with --restore-file {newest}"
        if last in good:
            again = f"the same command goes on from {last} (of update {good[last]})"
    else:
        newest = last
    return MuppetError(
        f"cannot write {path} ({reason}); the last good checkpoint is {newest} (of update {good[newest]}): "
        f"make room, and {again}"
    )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def _checkpoints(folder: Path) -> dict[Path, int]:
    """The updates of the checkpoints in a folder that open."""
    updates = {}
    for path in folder.glob("checkpoint*.pt"):
        with suppress(MuppetError, KeyError, IndexError, TypeError, ValueError):
            updates[path] = int(checkpoint_file.read(path, mapped=True)["optimizer_history"][-1]["num_updates"])
    return updates


def _newest_whole(torn: Path) -> tuple[Path, int] | None:
    """The checkpoint beside ``torn`` that was trained longest, and for how many updates."""
    updates = _checkpoints(torn.parent)
    for path in sorted(updates, key=updates.get, reverse=True):
        with suppress(MuppetError):
            if path != torn:
                _check(checkpoint_file.read(path), path)
                return path, updates[path]
    return None
