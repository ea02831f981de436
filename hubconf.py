"""For ``torch.hub.load(REPO, "muppet", source="local", checkpoint=DIR)``."""

from muppet_fairseq.hub import MuppetHub

dependencies = ["torch", "fairseq", "numpy", "omegaconf", "tokenizers", "tqdm", "yaml"]


def muppet(checkpoint: str) -> MuppetHub:
    """Load the folder that ``muppet release`` made: see :class:`muppet_fairseq.hub.MuppetHub`."""
    return MuppetHub.load(checkpoint)
