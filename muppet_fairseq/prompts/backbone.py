"""The backbone that a run keeps as it is: read from any checkpoint of a whole model, and told from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY

#: buffer of a model of which only a part is trained: the SHA-256 of its backbone, 32 bytes
BACKBONE_KEY = "backbone_sha256"


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a whole model: a checkpoint of a run, of ``muppet release`` or ``import-hf``, or fairseq's.

    Raises:
        MuppetError: the file is missing, damaged, or of no whole model.
    """
    content = checkpoint_file.read(path, mapped=True)
    state = content.get("model") if isinstance(content, dict) else None
    tensors = dict(state) if isinstance(state, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise MuppetError(
            f"{path} holds no model; name a checkpoint of a run, or model.pt of 'muppet release' or 'muppet import-hf'"
        )
    if BACKBONE_KEY in tensors:
        raise MuppetError(
            f"{path} holds but what was tuned on a backbone, not the backbone itself; name the checkpoint of that"
        )
    return tensors


def backbone_sha256(state: Mapping[str, Tensor]) -> Tensor:
    """The SHA-256 of a whole model's tensors as they are in its file, heads left out: uint8 ``[32]``.

    So it does not depend on the suite, and not on ``--max-positions``, for which the table of positions is cut.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if name != DICTIONARY_KEY and not name.startswith(("heads.", "classification_heads.")):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def check_backbone(own: Tensor, trained_on: Tensor) -> None:
    """Compare two :func:`backbone_sha256`. Raises MuppetError where they differ."""
    ours, theirs = (bytes(sha256.tolist()).hex() for sha256 in (own, trained_on))
    if ours != theirs:
        raise MuppetError(
            f"the checkpoint was trained on another backbone (its tensors' SHA-256 begins with {theirs[:12]}) than the "
            f"one that is given ({ours[:12]}): name the backbone that it was trained on"
        )
