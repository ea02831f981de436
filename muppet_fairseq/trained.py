"""A checkpoint opened for prediction: the model, its heads and what it knows of its datasets, without their data."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from muppet_fairseq import checkpoint_file
from muppet_fairseq.data.schedule import BatchSchedule, Sizes, SubBatchLimits
from muppet_fairseq.data.tokenizer import dictionary_sha256, load_dictionary
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.families.base import FamilyDataset
from muppet_fairseq.generation import Generator
from muppet_fairseq.models import bart, roberta  # noqa: F401 - registers the models
from muppet_fairseq.prompts.backbone import BACKBONE_KEY, read_backbone
from muppet_fairseq.prompts.prompt import PREFIX, PROMPT_TYPES, Prompt, prompt_of
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.suite import NAME
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a ``muppet`` run or release; no code in it is run, and no place that it names is looked at.

    Returns its ``cfg`` (``task`` and ``model``, as plain dictionaries), ``model`` (tensors) and ``task_state``.

    Raises:
        MuppetError: the file is missing, damaged, or of another task.
    """
    state = checkpoint_file.read(path, mapped=True)
    state = state if isinstance(state, dict) else {}
    known = state.get("task_state")
    if not isinstance(known, dict) or "specs" not in known:
        raise MuppetError(
            f"{path} does not say which datasets it was trained on: it is no checkpoint of --task muppet; "
            "pre-finetune or fine-tune it first"
        )
    checkpoint_file.check_options(state, path)
    try:
        cfg = {part: _as_dict(state["cfg"][part]) for part in ("task", "model")}
        # without PyTorch's notes on its modules
        model = dict(state["model"])
    except (KeyError, TypeError, ValueError):
        raise other_version(path) from None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()):
        raise other_version(path)
    return {"cfg": cfg, "model": model, "task_state": known}


def read_prompts(path: Path) -> tuple[dict[str, Any], Prompt]:
    """Read a checkpoint of a run with ``--tune prompts``: as :func:`read_checkpoint`, and its prompts.

    Raises:
        MuppetError: the file is missing or damaged, or holds no prompts.
    """
    state = read_checkpoint(path)
    prompts = {key.removeprefix(PREFIX): value for key, value in state["model"].items() if key.startswith(PREFIX)}
    if not prompts:
        raise MuppetError(f"{path} holds no prompts; name a checkpoint of a run with --tune prompts")
    try:
        datasets = [values["name"] for values in state["task_state"]["specs"]]
    except (KeyError, TypeError):
        raise other_version(path) from None
    return state, prompt_of(prompts, sharing=datasets)


def other_version(path: Path) -> MuppetError:
    """Say that a checkpoint's options are not what they should be."""
    return MuppetError(f"{path} is of another version of muppet_fairseq; load it with that")


def _as_dict(options: Any) -> dict[str, Any]:
    return vars(options) if isinstance(options, Namespace) else dict(options)


def task_options(options: Mapping[str, Any]) -> dict[str, int]:
    """Of a checkpoint's task, what laying out a question needs; all else is about a run, and names its paths."""
    chosen = {name: options[name] for name in ("max_positions", "window_overlap")}
    if not all(type(value) is int for value in chosen.values()):
        raise TypeError
    return chosen


def model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's model, what the architecture knows: the others are those of the run.

    Texts, which fairseq takes for names of files (``encoder_embed_path``) or evaluates as Python
    (``adaptive_softmax_cutoff``), are only taken where the architecture has a name of its own.
    """
    defaults = Namespace()
    ARCH_CONFIG_REGISTRY[options["arch"]](defaults)
    chosen = {"_name": options["arch"], "arch": options["arch"]}
    for name, default in sorted({"max_positions": None, **vars(defaults)}.items()):
        value = options.get(name, default)
        named = isinstance(value, str) and isinstance(default, str) and value.isidentifier()
        layers = (
            isinstance(value, str) and name.endswith("_layers_to_keep") and re.fullmatch(r"[0-9]+(,[0-9]+)*", value)
        )
        if value is not None and not isinstance(value, bool | int | float) and not named and not layers:
            raise TypeError
        chosen[name] = value
    return chosen


def _spec(values: dict[str, Any]) -> DatasetSpec:
    """A dataset of a checkpoint, whose name is part of paths. Raises KeyError or TypeError for what no suite has."""
    spec = DatasetSpec.from_dict(values)
    names = [spec.name] if spec.head is None else [spec.name, spec.head]
    fits = (
        all(NAME.fullmatch(name) for name in names)
        and spec.metric in FAMILIES[spec.family].metric_names
        and all(isinstance(label, str) for label in spec.labels)
        and type(spec.num_inputs) is int
    )
    if not fits:
        raise TypeError
    return spec


def _check_sizes(options: Mapping[str, Any], task: MuppetTask, state: Mapping[str, Tensor]) -> None:
    """Before a model is built: it will be as large as its tensors are. Raises ValueError.

    A backbone may have more positions than its model reads, and the names of fairseq's published RoBERTa.
    """
    partial = BACKBONE_KEY in state
    if partial:
        state = {re.sub(r"^decoder\.(?=sentence_encoder\.)", "encoder.", name): value for name, value in state.items()}
    for side in ("encoder", "decoder"):
        if f"{side}_layers" not in options:
            continue
        place = re.compile(rf"{side}\.(?:sentence_encoder\.)?(.*)")
        own = {match[1]: value for name, value in state.items() if (match := place.fullmatch(name))}
        layers = {name.split(".")[1] for name in own if name.startswith("layers.")}
        kept = options.get(f"{side}_layers_to_keep")
        width = own["embed_tokens.weight"].shape[1]
        sizes = {
            f"{side}_layers": (options[f"{side}_layers"] if kept is None else len(kept.split(",")), len(layers)),
            f"{side}_embed_dim": (options[f"{side}_embed_dim"], width),
            f"{side}_ffn_embed_dim": (options[f"{side}_ffn_embed_dim"], len(own["layers.0.fc1.weight"])),
            # fairseq counts them from the padding's number on
            "max_positions": (task.max_positions(), len(own["embed_positions.weight"]) - task.layout.pad - 1),
        }
        for name, (said, there) in sizes.items():
            if said > there or (said < there and not (partial and name == "max_positions")):
                raise ValueError(f"its options say {name} {said!r}, its tensors {there}")
    dim, length, kind = options["encoder_embed_dim"], options["prompt_length"], options["prompt_type"]
    names = [spec.name for spec in task.specs]
    wanted = PROMPT_TYPES[kind].shapes(names, length, dim) if options["tune"] == "prompts" else {}
    prompts = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if {name: tuple(value.shape) for name, value in prompts.items()} != wanted:
        raise ValueError(f"its options say {kind} prompts of {length} vectors, its tensors are others")
    if options["tune"] == "adapters":
        there = {len(value) for name, value in state.items() if name.endswith(".adapter.down.weight")}
        if there != {options["adapter_dim"]}:
            raise ValueError(f"its options say adapter_dim {options['adapter_dim']}, its tensors {sorted(there)}")
    for spec, head in zip(task.specs, task.heads, strict=True):
        numbers = sum(value.numel() for name, value in state.items() if name.startswith(f"heads.{head}."))
        if numbers < width * len(spec.labels):
            raise ValueError(f"its head {head} is of fewer classes than {spec.name} has")


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
    def load(cls, checkpoint: Path, dictionary: Path, prompts: Path | None = None) -> TrainedModel:
        """Build a model for prediction.

        Args:
            checkpoint: a file.
            dictionary: the file ``dict.txt``.
            prompts: what was trained of the model with ``--tune``, of which ``checkpoint`` is the backbone.

        Raises:
            MuppetError: a file cannot be used, or the two do not belong together.
        """
        backbone = checkpoint
        if prompts is not None:
            checkpoint = prompts
        state = read_checkpoint(checkpoint)
        if (BACKBONE_KEY in state["model"]) != (prompts is not None):
            raise MuppetError(
                f"{checkpoint} is a whole model: name it as the checkpoint, without --prompts"
                if prompts is not None
                else f"{checkpoint} holds but what --tune has trained, which 'muppet evaluate' and the hub complete: "
                "name its backbone as the checkpoint, and this with --prompts"
            )
        try:
            # heads are wanted as they are
            cfg = MuppetTaskConfig(**task_options(state["cfg"]["task"]), reuse_heads=True, seed=1)
            options = Namespace(**model_options(state["cfg"]["model"]))
            kind = ARCH_MODEL_REGISTRY[options.arch]
            specs = [_spec(values) for values in state["task_state"]["specs"]]
        except (AttributeError, KeyError, TypeError):
            raise other_version(checkpoint) from None
        task = MuppetTask(cfg, load_dictionary(dictionary), dictionary_sha256(dictionary), specs)
        try:
            if prompts is None:
                _check_sizes(vars(options), task, state["model"])
            else:
                options.backbone = str(backbone)
                _check_sizes(vars(options), task, read_backbone(backbone) | state["model"])
            model = kind.build_model(options, task)
            # loading would start a head afresh
            for name, value in model.heads.state_dict(prefix="heads.").items():
                if name not in state["model"] or state["model"][name].shape != value.shape:
                    raise MuppetError(f"{checkpoint} lacks {name}, which its datasets need; copy it again")
            model.load_state_dict(state["model"], strict=True)
        except MuppetError:
            raise
        except Exception as error:  # any option and any tensor may be odd
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MuppetError(f"{checkpoint} describes no model that can be built ({reason}); copy it again") from None
        return cls(task, model.eval())

    def prompt_of(self, spec: DatasetSpec) -> str | None:
        """The dataset whose prompt ``spec`` is predicted with: its own; None for a model without prompts.

        Raises MuppetError where the model has prompts, but none for this dataset.
        """
        self.model.prompt(spec.name)
        return None if self.model.prompts is None else spec.name

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
        family, head, prompt = FAMILIES[spec.family], self.head_of(spec), self.prompt_of(spec)
        sizes = Sizes(spec.name, dataset.lengths, dataset.rows, dataset.written)
        if max_tokens is None:
            max_tokens = max(4096, int((sizes.lengths.astype(np.int64) * sizes.rows).max()))
        schedule = BatchSchedule([sizes], SubBatchLimits(max_tokens, None), shuffle=False)
        predictions: list[dict[str, Any]] = [{}] * len(dataset)
        for sub_batch in range(len(schedule)):
            examples = schedule[sub_batch]
            sample = dataset.collate([dataset[int(example)] for example in examples])
            if prompt is not None:
                sample["net_input"]["prompt"] = prompt
            if self.device.type == "cuda":
                sample = utils.move_to_cuda(sample)
            for example, prediction in zip(
                examples, family.predict(self.model, sample, spec, head, generator), strict=True
            ):
                predictions[example] = prediction
            progress(len(examples))
        return predictions
