"""The workarounds of ``compat.py``: checkpoints load, but no code in them runs; stock fairseq resumes."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.file_io import PathManager

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import MuppetError
from tests.toy_suite import ROOT, logged, trained


def checkpoint(**more: Any) -> dict[str, Any]:
    """The least that fairseq takes for a checkpoint."""
    history = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 7}]
    iterator = {"epoch": 3, "iterations_in_epoch": 5}
    return {"model": {}, "optimizer_history": history, "extra_state": {"train_iterator": iterator}} | more


def reduced_to(function: Any, *arguments: Any) -> Any:
    """An object that calls ``function`` when it is unpickled."""

    class Malicious:
        def __reduce__(self) -> tuple:
            return function, arguments

    return Malicious()


@pytest.fixture
def without_compat():
    """PyTorch's own list of safe types."""
    ours = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(ours)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", ["os.system", "exec", "getattr"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, call, zipped):
    mark = tmp_path / "executed"
    evil = {
        "os.system": reduced_to(os.system, f"touch {mark}"),
        "exec": reduced_to(exec, f"open({str(mark)!r}, 'w').close()"),
        "getattr": reduced_to(getattr, Path(mark), "touch"),
    }[call]
    path = tmp_path / "evil.pt"
    torch.save(checkpoint(extra=evil), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MuppetError, match="holds code besides tensors"):
        load_checkpoint_to_cpu(str(path))
    assert not mark.exists()
    if call != "getattr":  # the file is what it says: without the check it runs
        torch.load(path, weights_only=False)
        assert mark.exists()


SCALARS = [kind(1) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)]


def test_the_types_of_fairseqs_checkpoints_load(tmp_path):
    args = Namespace(arch="roberta_base", task="masked_lm", lr=[0.5], seed=np.int64(3))
    path = tmp_path / "model.pt"
    torch.save(checkpoint(args=args, best=SCALARS), path)
    state = load_checkpoint_to_cpu(str(path))
    assert state["args"].arch == "roberta_base"
    assert state["args"].seed == 3
    assert [(type(value), value) for value in state["best"]] == [(type(value), value) for value in SCALARS]
    assert state["cfg"]["task"]["_name"] == "masked_lm"


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_scalars_of_either_numpy_load(module):
    """numpy 2 moved the function that unpickles a scalar; files of numpy 1 keep the old name."""
    file = io.BytesIO()
    torch.save({"best": SCALARS}, file, _use_new_zipfile_serialization=False)
    here = np.float64(0).__reduce__()[0].__module__.encode()
    content = file.getvalue()
    assert content.count(here + b"\nscalar\n") == 1
    loaded = torch.load(io.BytesIO(content.replace(here + b"\n", module + b"\n")), weights_only=True)
    assert loaded["best"] == SCALARS


def test_without_compat_fairseqs_own_checkpoints_are_refused(tmp_path, without_compat):
    """So that this workaround goes when it is no longer needed."""
    for number, value in enumerate((Namespace(a=1), np.float64(1))):
        path = tmp_path / f"{number}.pt"
        torch.save(checkpoint(best=value), path)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path)  # what fairseq does on its own
    checkpoint_file.allow_checkpoint_types()
    for number in range(2):
        load_checkpoint_to_cpu(str(tmp_path / f"{number}.pt"))


def test_a_run_of_stock_fairseq_resumes(data, tmp_path, without_compat):
    """Its own task, criterion and model; ours is there only as ``--user-dir``, for its workarounds."""
    arguments = [
        *(str(data / "pairs"), "--user-dir", str(ROOT / "muppet_fairseq"), "--task", "sentence_prediction"),
        *("--criterion", "sentence_prediction", "--arch", "roberta_base", "--num-classes", "3"),
        *("--classification-head-name", "sentence_classification_head", "--init-token", "0", "--separator-token", "2"),
        *("--encoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16"),
        *("--encoder-attention-heads", "2", "--max-positions", "64", "--batch-size", "8", "--optimizer", "adam"),
        *("--lr", "0.001", "--update-freq", "1", "--cpu", "--num-workers", "0", "--log-format", "json"),
        *("--log-interval", "1", "--no-epoch-checkpoints", "--disable-validation", "--save-dir", str(tmp_path / "run")),
    ]
    trained([*arguments, "--max-update", "2"], command=True)
    path = tmp_path / "run" / "checkpoint_last.pt"
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path)  # what stock fairseq does on its own
    trained([*arguments, "--max-update", "3"], command=True)
    assert [int(line["num_updates"]) for line in logged(tmp_path / "run", "train_inner")] == [1, 2, 3]
    *_, last = logged(tmp_path / "run", "train")
    trained([*arguments, "--max-update", "3"], command=True)  # there is nothing left to do
    assert len(logged(tmp_path / "run", "train_inner")) == 3
    *_, again = logged(tmp_path / "run", "train")
    assert (again["train_loss"], again["train_num_updates"]) == (last["train_loss"], "3")
    checkpoint_file.allow_checkpoint_types()
    assert load_checkpoint_to_cpu(str(path))["optimizer_history"][-1]["num_updates"] == 3


def test_a_copy_of_a_checkpoint_that_is_interrupted_leaves_the_old_one(tmp_path, monkeypatch):
    new, last = tmp_path / "checkpoint_1_4.pt", tmp_path / "checkpoint_last.pt"
    new.write_bytes(b"new" * 1000)
    last.write_bytes(b"old")
    assert checkpoint_utils.PathManager is PathManager  # what fairseq saves with

    def interrupted(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            PathManager.copy(str(new), str(last), overwrite=True)
    assert last.read_bytes() == b"old"
    assert PathManager.copy(str(new), str(last), overwrite=True)
    assert last.read_bytes() == new.read_bytes()
    assert sorted(tmp_path.iterdir()) == [new, last]
