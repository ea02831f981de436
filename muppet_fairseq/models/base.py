"""What both models add to fairseq's: heads by name, and the fingerprint of the dictionary."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, adapt_state_dict
from muppet_fairseq.models.heads import normalize_spectrally

if TYPE_CHECKING:
    from muppet_fairseq.hub import MuppetHub


class WithHeads:
    """Mixed into a fairseq model.

    Attributes:
        heads: a module for each head of the suite; those that a sub-batch does not name are not computed.
        leaves_unused: whether a sub-batch may leave parameters out: another dataset's head, or a dropped layer.
        reuse_heads: whether :meth:`adapt` takes the heads of the state that it is given.
    """

    heads: nn.ModuleDict
    leaves_unused: bool
    reuse_heads: bool

    @staticmethod
    def add_head_args(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--spectral-norm-heads",
            action="store_true",
            help="R4F: divide each head's projection by its largest singular value (with --criterion muppet_r3f)",
        )

    def add_heads(self, args: Namespace, task: Any, dim: int, *, has_decoder: bool) -> None:
        """Build the suite's heads on features of width ``dim``."""
        #: names the dictionary that the embeddings belong to
        sha256 = torch.tensor(list(bytes.fromhex(task.dictionary_sha256)))
        self.register_buffer(DICTIONARY_KEY, sha256.byte())
        self.heads = nn.ModuleDict(task.build_heads(dim, args.pooler_dropout, has_decoder=has_decoder))
        layerdrop = (getattr(args, f"{part}_layerdrop", 0) for part in ("encoder", "decoder"))
        self.leaves_unused = len(set(task.heads)) > 1 or any(layerdrop)
        self.reuse_heads = task.reuse_heads

    def normalize_heads(self, args: Namespace) -> None:
        """Apply ``--spectral-norm-heads``; after initialising, which would not reach a normalised weight."""
        if args.spectral_norm_heads:
            for head in self.heads.values():
                normalize_spectrally(head)

    def reads_sentence(self, head: str | None) -> bool:
        """Whether a head reads but one vector of each row."""
        return head is not None and self.heads[head].level == "sentence"

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MuppetHub:
        """Load what ``muppet release`` made of such a model. Raises MuppetError."""
        from muppet_fairseq.hub import MuppetHub  # the hub knows all models

        hub = MuppetHub.load(folder)
        if not isinstance(hub.model, cls):
            raise MuppetError(f"{folder} holds a {type(hub.model).__name__}, not a {cls.__name__}; load it with that")
        return hub

    def adapt(self, state: dict[str, Tensor], positions: tuple[str, ...]) -> None:
        """Make ``state`` load strictly: see :func:`adapt_state_dict`."""
        adapt_state_dict(self, state, positions=positions, reuse_heads=self.reuse_heads)
