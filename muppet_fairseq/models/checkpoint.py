"""Makes a checkpoint's parameters fit the model that is to be trained: heads, positions, dictionary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.heads import NORMALIZED, PLAIN, SpectralNorm

logger = logging.getLogger(__name__)

#: buffer of every muppet model: the SHA-256 of dict.txt, 32 bytes
DICTIONARY_KEY = "dictionary_sha256"
#: what the names of an import's tensors begin with that our models have no use for, but an export: a pooler, a head
UNUSED_PREFIX = "hf."


def packed(
    task: dict[str, Any], model: dict[str, Any], state: dict[str, Tensor], task_state: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What fairseq's ``checkpoint_utils`` and trainer read, without a run's own state: plain values and tensors only.

    Args:
        task, model: options, each with ``_name``.
        state: the model's tensors.
        task_state: what the task keeps.
    """
    return {
        "args": None,
        "cfg": {"task": task, "model": model},
        "model": state,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "last_optimizer_state": None,
        "task_state": task_state or {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }


def adapt_state_dict(
    model: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor], *, positions: Sequence[str], reuse_heads: bool
) -> None:
    """Change ``state`` in place so that it loads strictly into ``model``, all of whose tensors are ``own``.

    * Heads: those of the model are taken from the checkpoint when ``reuse_heads`` and the shapes agree, else
      they start fresh; heads that the model lacks are left out. Both are logged. A spectrally normalised head
      loads into a plain one, and the other way round.
    * ``positions`` (the position tables' keys) are cut when the model is shorter than the checkpoint.
    * The dictionary must be the one that the embeddings were trained with.

    Raises MuppetError for another dictionary, a model longer than the checkpoint, or one of other sizes.
    """
    for key in [key for key in state if key.startswith(UNUSED_PREFIX)]:
        del state[key]
    check_dictionary(own, state)
    for key in positions:
        _fit_positions(own, state, key)
    _fit_heads(own, state, reuse_heads=reuse_heads)
    choose = "choose the --arch (and its sizes) that the checkpoint was made with"
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise MuppetError(
                f"the checkpoint's {key} has shape {tuple(value.shape)}, the model's {tuple(own[key].shape)}: {choose}"
            )
    lacking, unused = own.keys() - state, state.keys() - own
    if lacking:
        raise MuppetError(f"the model has {min(lacking)}, which the checkpoint lacks: {choose}")
    # with --encoder-layers-to-keep fairseq drops the other layers after this
    if unused and not getattr(model.args, "encoder_layers_to_keep", None):
        raise MuppetError(f"the checkpoint has {min(unused)}, which the model lacks: {choose}")


def check_dictionary(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Raise MuppetError where ``state`` was trained with another dictionary than the model of the tensors ``own``."""
    # fairseq's own checkpoints do not name their dictionary
    theirs = state.setdefault(DICTIONARY_KEY, own[DICTIONARY_KEY])
    # the model may be on a GPU, what was read is not
    if not theirs.cpu().equal(own[DICTIONARY_KEY].cpu()):
        raise MuppetError(
            "the checkpoint was trained with another dictionary than this data-bin's dict.txt: prepare the data "
            "with the checkpoint's tokenizer (python -m preprocess prepare --tokenizer DIR)"
        )


def _fit_positions(own: dict[str, Tensor], state: dict[str, Tensor], key: str) -> None:
    if key not in state:
        return
    have, want = len(state[key]), len(own[key])
    if have < want:
        raise MuppetError(
            f"the checkpoint has {have} positions, the model {want} (padding's included): "
            f"set --max-positions to at most {have - 2}"
        )
    state[key] = state[key][:want]


def fit_normalization(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Rename the heads' projections as the model has them; what was normalised stays so in a plain model."""
    for key in [key for key in state if key.startswith("heads.")]:
        for theirs, ours in ((PLAIN, NORMALIZED), (NORMALIZED, PLAIN)):
            renamed = key.removesuffix(theirs) + ours
            if key.endswith(theirs) and renamed in own:
                weight = state.pop(key)
                state[renamed] = SpectralNorm()(weight) if ours == PLAIN else weight


def _fit_heads(own: dict[str, Tensor], state: dict[str, Tensor], *, reuse_heads: bool) -> None:
    fit_normalization(own, state)
    names = {key.split(".")[1] for key in own if key.startswith("heads.")}
    reused, fresh = [], []
    for name in sorted(names):
        keys = [key for key in own if key.startswith(f"heads.{name}.")]
        if reuse_heads and all(key in state and state[key].shape == own[key].shape for key in keys):
            reused.append(name)
        else:
            fresh.append(name)
            state.update({key: own[key] for key in keys})
    left_out = {key.split(".")[1] for key in state if key.startswith("heads.")} - names
    for key in [key for key in state if key.startswith("heads.") and key.split(".")[1] in left_out]:
        del state[key]
    for what, which in (("re-used", reused), ("fresh", fresh), ("left out", sorted(left_out))):
        if which:
            logger.info("heads %s: %s", what, ", ".join(which))
