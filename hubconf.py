"""For ``torch.hub.load(REPO, "muppet", source="local", checkpoint=DIR)``."""

from __future__ import annotations

from muppet_fairseq.hub import MuppetHub

dependencies = ["torch", "fairseq", "numpy", "omegaconf", "tokenizers", "tqdm", "yaml"]


def muppet(checkpoint: str, prompts: str | None = None) -> MuppetHub:
    """Load the folder that ``muppet release`` made: see :meth:`muppet_fairseq.hub.MuppetHub.load`."""
    return MuppetHub.load(checkpoint, prompts)
