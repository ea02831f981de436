"""What of a model is trained (``--tune``): the options, and which parameters each of its values means."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.prompts.prompt import PREFIX, PROMPT_TYPES

TUNINGS = ("all", "prompts", "bitfit", "adapters")


def add_tuning_args(parser: ArgumentParser) -> None:
    """Add the options of both models."""
    parser.add_argument(
        "--tune",
        choices=TUNINGS,
        help="what is trained, besides the heads: all (default), soft prompts, all biases (BitFit), or adapters; the "
        "rest, from --backbone, is frozen (its dropout goes on: set --dropout)",
    )
    parser.add_argument(
        "--backbone",
        metavar="FILE",
        help="with --tune prompts, bitfit or adapters: checkpoint of the model of which a part is trained",
    )
    parser.add_argument(
        "--prompt-length", type=int, metavar="L", help="with --tune prompts: vectors before the tokens (paper: 100)"
    )
    parser.add_argument(
        "--prompt-type",
        choices=list(PROMPT_TYPES),
        help="with --tune prompts: a matrix for each dataset (default), a shared one times a matrix of rank 1 for each "
        "(MPT), or one for all",
    )
    parser.add_argument(
        "--prompt-seed",
        type=int,
        metavar="N",
        help="with --tune prompts: draws the words that they begin with (default: --seed); only of prompts that began "
        "alike does their similarity say anything",
    )
    parser.add_argument("--adapter-dim", type=int, metavar="N", help="with --tune adapters: hidden units of one (64)")


def tuning_arguments(args: Namespace) -> None:
    """Complete the model's arguments."""
    defaults = {"tune": "all", "prompt_length": 0, "prompt_type": "vanilla", "prompt_seed": None, "adapter_dim": 64}
    for name, value in defaults.items():
        setattr(args, name, getattr(args, name, value))


def check_tuning(args: Namespace) -> None:
    """Raise MuppetError for options that do not go together."""
    backbone, option = getattr(args, "backbone", None), f"--tune {args.tune}"
    if args.tune == "all" and backbone:
        raise MuppetError("--backbone names what is frozen: add --tune, or start from it with --finetune-from-model")
    if args.tune != "prompts" and args.prompt_length:
        raise MuppetError("--prompt-length is for --tune prompts: add that, or leave it out")
    if args.tune != "prompts" and args.prompt_seed is not None:
        raise MuppetError("--prompt-seed is for --tune prompts: add that, or leave it out")
    if args.tune == "all":
        return
    kept = (getattr(args, f"{side}_layers_to_keep", None) for side in ("encoder", "decoder"))
    for wrong, sentence in (
        (not backbone, f"{option} trains a part of a model: name the checkpoint of the whole with --backbone"),
        (
            args.tune == "prompts" and args.prompt_length < 1,
            f"{option} has prompts of {args.prompt_length} vectors: give --prompt-length at least 1",
        ),
        (
            args.tune == "adapters" and args.adapter_dim < 1,
            f"{option} has adapters of {args.adapter_dim} hidden units: give --adapter-dim at least 1",
        ),
        (
            getattr(args, "ddp_backend", None) == "fully_sharded",
            f"{option} does not go with --ddp-backend fully_sharded: choose legacy_ddp or pytorch_ddp",
        ),
        (any(kept), f"{option} does not go with --encoder-layers-to-keep or --decoder-layers-to-keep: leave these out"),
    ):
        if wrong:
            raise MuppetError(sentence)


def is_tuned(tune: str, name: str) -> bool:
    """Whether a model's parameter of this name is trained. The biases of layer norms are biases."""
    if name.startswith("heads.") or tune == "all":
        return True
    if tune == "prompts":
        return name.startswith(PREFIX)
    return name.endswith(".bias") if tune == "bitfit" else ".adapter." in name


def tuning_of(names: list[str]) -> str:
    """Which ``--tune`` has trained a checkpoint that holds only these."""
    for tune in ("prompts", "adapters"):
        if any(is_tuned(tune, name) and not name.startswith("heads.") for name in names):
            return tune
    return "bitfit"
