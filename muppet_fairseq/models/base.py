"""What both models add to fairseq's: heads by name, the fingerprint of the dictionary, and training of a part."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.adapter import Adapter
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, adapt_state_dict
from muppet_fairseq.models.heads import normalize_spectrally
from muppet_fairseq.models.layers import DecoderLayer, Encoder, EncoderLayer
from muppet_fairseq.prompts.backbone import BACKBONE_KEY, backbone_sha256, check_backbone, read_backbone
from muppet_fairseq.prompts.count import count_parameters
from muppet_fairseq.prompts.prompt import PREFIX, PROMPT_TYPES, Prompt, drawn_words, prompt_of
from muppet_fairseq.prompts.tuning import add_tuning_args, check_tuning, is_tuned, tuning_arguments, tuning_of

if TYPE_CHECKING:
    from muppet_fairseq.hub import MuppetHub

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """What one dataset is predicted with besides the backbone.

    Attributes:
        prompt: vectors ``[l, d]``, or None.
        head: None where the decoder's features or the vocabulary's scores are wanted.
    """

    prompt: Tensor | None
    head: nn.Module | None

    @property
    def reads_sentence(self) -> bool:
        """Whether the head reads but one vector of each row."""
        return self.head is not None and self.head.level == "sentence"


#: the states ``[R, T, D]`` of each layer, and which of the positions are tokens: bool ``[R, T]``
Hidden = list[tuple[Tensor, Tensor]]


class WithHeads:
    """Mixed into a fairseq model.

    Attributes:
        heads: a module for each head of the suite; those that a sub-batch does not name are not computed.
        leaves_unused: whether a sub-batch may leave parameters out: another dataset's head, or a dropped layer.
        reuse_heads: whether :meth:`adapt` takes the heads of the state that it is given.
        tuning: what is trained, one of :data:`~muppet_fairseq.prompts.tuning.TUNINGS`. Unless that is all, the model's
            ``state_dict`` holds only what is, and loads what such a model gave.
        prompts: of each dataset, or None.
        text_encoder: what reads the rows; each model says where it has it.
    """

    heads: nn.ModuleDict
    leaves_unused: bool
    reuse_heads: bool
    tuning: str = "all"
    prompts: Prompt | None
    text_encoder: Encoder

    @staticmethod
    def add_head_args(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--spectral-norm-heads",
            action="store_true",
            help="R4F: divide each head's projection by its largest singular value (with --criterion muppet_r3f)",
        )
        add_tuning_args(parser)

    @staticmethod
    def head_arguments(args: Namespace) -> None:
        """Complete the arguments of :meth:`add_head_args`."""
        args.spectral_norm_heads = getattr(args, "spectral_norm_heads", False)
        tuning_arguments(args)

    def add_heads(self, args: Namespace, task: Any, dim: int, *, has_decoder: bool) -> None:
        """Build the suite's heads on features of width ``dim``."""
        #: names the dictionary that the embeddings belong to
        sha256 = torch.tensor(list(bytes.fromhex(task.dictionary_sha256)))
        self.register_buffer(DICTIONARY_KEY, sha256.byte())
        self.heads = nn.ModuleDict(task.build_heads(dim, args.pooler_dropout, has_decoder=has_decoder))
        layerdrop = (getattr(args, f"{part}_layerdrop", 0) for part in ("encoder", "decoder"))
        self.leaves_unused = len(set(task.heads)) > 1 or any(layerdrop)
        self.reuse_heads = task.reuse_heads
        self.register_module("prompts", None)

    def normalize_heads(self, args: Namespace) -> None:
        """Apply ``--spectral-norm-heads``; after initialising, which would not reach a normalised weight."""
        if args.spectral_norm_heads:
            for head in self.heads.values():
                normalize_spectrally(head)

    def tune(self, args: Namespace, task: Any) -> None:
        """Apply ``--tune``: load the backbone, add what is trained on it, and freeze the rest; after all else is built.

        Raises MuppetError for a backbone that cannot be used, and for options that do not go together.
        """
        check_tuning(args)
        if args.tune == "all":
            return
        if args.tune != "bitfit" and any(getattr(module, "is_unusual", False) for module in self.modules()):
            raise MuppetError(f"--tune {args.tune} does not go with --quant-noise-pq or xFormers: leave these out")
        self._load_backbone(Path(args.backbone))
        if args.tune == "prompts":
            names = [spec.name for spec in task.specs]
            encoder, dictionary = self.text_encoder, task.dictionary
            seed = task.cfg.seed if args.prompt_seed is None else args.prompt_seed
            words = drawn_words(args.prompt_length, len(dictionary), dictionary.nspecial, seed)
            with torch.no_grad():
                matrix = encoder.read(words.to(encoder.embed_tokens.weight.device))
            self.prompts = PROMPT_TYPES[args.prompt_type](names, *matrix.shape)
            self.prompts.start_alike(matrix)
            self.leaves_unused = self.leaves_unused or (len(names) > 1 and self.prompts.has_own)
        if args.tune == "adapters":
            for layer in list(self.modules()):
                if isinstance(layer, EncoderLayer | DecoderLayer):
                    layer.adapter = Adapter(layer.embed_dim, args.adapter_dim)
        self.tuning = args.tune
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_tuned(self.tuning, name))
        logger.info("--tune %s: %s", self.tuning, count_parameters(self))

    def _load_backbone(self, path: Path) -> None:
        state = read_backbone(path)
        sha256 = backbone_sha256(state)
        try:
            self.load_state_dict(state, strict=True)
        except MuppetError as error:
            raise MuppetError(f"{path}: {error}") from None
        except Exception as error:  # any tensor may be odd
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MuppetError(f"{path} holds no model that can be loaded ({reason}); name another one") from None
        #: names the backbone that the rest was trained on
        self.register_buffer(BACKBONE_KEY, sha256)

    def prompt(self, dataset: str | None) -> Tensor | None:
        """The prompt ``[l, d]`` of a dataset; None for a model without prompts, whatever the dataset.

        Raises MuppetError where there are prompts, but none for this one.
        """
        if self.prompts is None:
            return None
        if dataset is None:
            raise MuppetError(
                f"the model has a prompt for each dataset: name one of {', '.join(self.prompts.names)}, as dataset=..."
            )
        return self.prompts.matrix(dataset)

    def part(self, dataset: str | None, head: str | None) -> Part:
        """What the model itself predicts with: the prompt of a dataset (see :meth:`prompt`) and the head of a name."""
        return Part(self.prompt(dataset), None if head is None else self.heads[head])

    @classmethod
    def from_pretrained(cls, folder: str | Path, prompts: str | Path | None = None) -> MuppetHub:
        """Load what ``muppet release`` made of such a model: see :meth:`MuppetHub.load`. Raises MuppetError."""
        from muppet_fairseq.hub import MuppetHub  # the hub knows all models

        hub = MuppetHub.load(folder, prompts)
        if not isinstance(hub.model, cls):
            raise MuppetError(f"{folder} holds a {type(hub.model).__name__}, not a {cls.__name__}; load it with that")
        return hub

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """PyTorch's; of a model of which a part is trained, that part, and what names dictionary and backbone."""
        state, prefix = super().state_dict(*arguments, **keywords), keywords.get("prefix", "")
        for key in [key for key in state if key.startswith(prefix) and self._is_frozen(key.removeprefix(prefix))]:
            del state[key]
        return state

    def _is_frozen(self, key: str) -> bool:
        return not is_tuned(self.tuning, key) and key not in (DICTIONARY_KEY, BACKBONE_KEY)

    def complete(self, state: dict[str, Tensor]) -> None:
        """Add to a state that was made by training a part of a model what was frozen; comes before all other changes.

        Raises MuppetError where the other part is not this model's.
        """
        partial = BACKBONE_KEY in state
        if self.tuning == "all":
            if partial:
                raise MuppetError(
                    f"the checkpoint holds but what --tune {tuning_of(list(state))} has trained, not a whole model: go "
                    "on from it with that option and its --backbone"
                )
            return
        if not partial:
            raise MuppetError(
                f"the checkpoint holds a whole model, of which --tune {self.tuning} trains a part: name it with "
                "--backbone instead"
            )
        check_backbone(self.get_buffer(BACKBONE_KEY), state[BACKBONE_KEY])
        if tuning_of(list(state)) != self.tuning:
            raise MuppetError(
                f"the checkpoint holds what --tune {tuning_of(list(state))} has trained, this is a model for --tune "
                f"{self.tuning}: choose the same"
            )
        state.update({key: value for key, value in super().state_dict().items() if self._is_frozen(key)})

    def adapt(self, state: dict[str, Tensor], positions: tuple[str, ...]) -> None:
        """Make ``state`` load strictly: see :func:`adapt_state_dict`, and :meth:`Prompt.start_from`."""
        if self.prompts is not None:
            self._fit_prompts(state)
        # where all is trained, a sharded model's is asked for in another way: see compat.upgrade_sharded
        own = self.state_dict() if self.tuning == "all" else super().state_dict()
        adapt_state_dict(self, own, state, positions=positions, reuse_heads=self.reuse_heads)

    def _fit_prompts(self, state: dict[str, Tensor]) -> None:
        own = self.prompts
        prompts = {key.removeprefix(PREFIX): state.pop(key) for key in list(state) if key.startswith(PREFIX)}
        given = prompt_of(prompts, sharing=own.names)
        fitted = type(own)(own.names, own.length, own.dim)
        fitted.start_from(given)
        state.update(fitted.state_dict(prefix=PREFIX))
        new = [name for name in own.names if name not in given.names]
        if new:
            logger.info("prompts of %s: from those of %s", ", ".join(new), ", ".join(given.names))
