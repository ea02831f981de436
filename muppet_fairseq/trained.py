"""A checkpoint opened for prediction: the model, its heads and what it knows of its datasets, without their data."""

from __future__ import annotations

import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import nn

from muppet_fairseq.data.schedule import BatchSchedule, Sizes, SubBatchLimits
from muppet_fairseq.data.tokenizer import dictionary_sha256, load_dictionary
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset
from muppet_fairseq.generation import Generator
from muppet_fairseq.models import bart, roberta  # noqa: F401 - registers the models
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a ``muppet`` run or release; no code in it is run.

    Returns its ``cfg`` (``task`` and ``model``, as plain dictionaries), ``model`` (tensors) and ``task_state``.

    Raises:
        MuppetError: the file is missing, damaged, or of another task.
    """
    try:
        # mapped: the optimizer's state, which may be twice the model, is not read
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise MuppetError(f"the checkpoint {path} cannot be read ({error.strerror or error})") from None
    except Exception:  # a damaged pickle may raise anything, and PyTorch's advice is to switch its check off
        raise MuppetError(
            f"{path} is damaged, or holds more than the tensors and plain values of a checkpoint, which is not loaded; "
            "copy it again"
        ) from None
    state = state if isinstance(state, dict) else {}
    # PyTorch does not look at checksums; a run's own checkpoint, three times as large, has not travelled
    if state.get("last_optimizer_state") is None and zipfile.is_zipfile(path) and not _is_whole(path):
        raise MuppetError(f"{path} is damaged, its checksums do not agree; copy it again")
    known = state.get("task_state")
    if not isinstance(known, dict) or "specs" not in known:
        raise MuppetError(
            f"{path} does not say which datasets it was trained on: it is no checkpoint of --task muppet; "
            "pre-finetune or fine-tune it first"
        )
    cfg = {part: _as_dict(state["cfg"][part]) for part in ("task", "model")}
    return {"cfg": cfg, "model": state["model"], "task_state": known}


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # as above
        return False


def _as_dict(options: Any) -> dict[str, Any]:
    return vars(options) if isinstance(options, Namespace) else dict(options)


@dataclass
class TrainedModel:
    """A model that predicts.

    Attributes:
        task: knows the datasets (``task.specs``), the dictionary and the layout of rows.
        model: in evaluation mode.
    """

    task: MuppetTask
    model: nn.Module

    @classmethod
    def load(cls, checkpoint: Path, dictionary: Path) -> TrainedModel:
        """Build the model of ``checkpoint`` (a file) with the dictionary file ``dictionary``. Raises MuppetError."""
        state = read_checkpoint(checkpoint)
        known = {field.name for field in fields(MuppetTaskConfig)}
        values = {name: value for name, value in state["cfg"]["task"].items() if name in known}
        # heads are wanted as they are; nothing is validated
        cfg = MuppetTaskConfig(**values | {"reuse_heads": True, "eval_rouge": False})
        options = Namespace(**state["cfg"]["model"])
        try:
            specs = [DatasetSpec.from_dict(spec) for spec in state["task_state"]["specs"]]
            kind = ARCH_MODEL_REGISTRY[options.arch]
        except (KeyError, TypeError):
            raise MuppetError(f"{checkpoint} is of another version of muppet_fairseq; load it with that") from None
        task = MuppetTask(cfg, load_dictionary(dictionary), dictionary_sha256(dictionary), specs)
        model = kind.build_model(options, task)
        # loading would start a head afresh
        for name, value in model.heads.state_dict(prefix="heads.").items():
            if name not in state["model"] or state["model"][name].shape != value.shape:
                raise MuppetError(f"{checkpoint} lacks {name}, which its datasets need; copy it again")
        model.load_state_dict(state["model"], strict=True)
        return cls(task, model.eval())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def head_of(self, spec: DatasetSpec) -> str | None:
        """The head that predicts ``spec``: its own, its family's, or one that it names; None where the decoder writes.

        Raises:
            MuppetError: the model has none, or that of datasets with other classes.
        """
        family = FAMILIES[spec.family]
        if family.generates:
            if not hasattr(self.model, "decoder"):
                raise MuppetError(
                    f"the model is an encoder alone, which cannot write texts for {spec.name}; load a muppet_bart"
                )
            return None
        for own, head in zip(self.task.specs, self.task.heads, strict=True):
            if own.name == spec.name and own.family == spec.family:
                return head
        name, _ = family.head(spec, 1, 0.0)
        # a head of the whole family serves datasets that it was not trained on, too, and so does one that they name
        if name in self.model.heads and (name == family.name or spec.head):
            for own, head in zip(self.task.specs, self.task.heads, strict=True):
                if head == name and own.labels != spec.labels:
                    raise MuppetError(
                        f"the head {name!r} predicts the classes of {own.name} ({', '.join(own.labels)}), "
                        f"{spec.name} has {', '.join(spec.labels) or 'none'}; name another head"
                    )
            return name
        heads = sorted(self.model.heads)
        raise MuppetError(
            f"the model has no head for {spec.name}{nearest(spec.name, heads)}; "
            + (f"it has {', '.join(heads)}" if heads else "it has no heads at all")
        )

    @torch.inference_mode()
    def predict(
        self,
        spec: DatasetSpec,
        dataset: FamilyDataset,
        *,
        max_tokens: int | None = None,
        generator: Generator | None = None,
        progress: Callable[[int], Any] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """Predict every example of a dataset that was laid out for evaluation, in its order.

        Args:
            max_tokens: padded tokens x rows of a sub-batch; None: as many as one example has at most, or 4,096.
            generator: writes the texts of a family that generates.
            progress: called with the number of examples just predicted.
        """
        family, head = FAMILIES[spec.family], self.head_of(spec)
        if max_tokens is None:
            max_tokens = max(4096, int((dataset.lengths.astype(np.int64) * dataset.rows).max()))
        sizes = Sizes(spec.name, dataset.lengths, dataset.rows)
        schedule = BatchSchedule([sizes], SubBatchLimits(max_tokens, None), shuffle=False)
        predictions: list[dict[str, Any]] = [{}] * len(dataset)
        for sub_batch in range(len(schedule)):
            examples = schedule[sub_batch]
            sample = dataset.collate([dataset[int(example)] for example in examples])
            if self.device.type == "cuda":
                sample = utils.move_to_cuda(sample)
            for example, prediction in zip(
                examples, family.predict(self.model, sample, spec, head, generator), strict=True
            ):
                predictions[example] = prediction
            progress(len(examples))
        return predictions
