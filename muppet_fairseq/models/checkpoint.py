"""Makes a checkpoint's parameters fit the model that is to be trained: heads, positions, dictionary."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from muppet_fairseq.errors import MuppetError

logger = logging.getLogger(__name__)

#: buffer of every muppet model: the SHA-256 of dict.txt, 32 bytes
DICTIONARY_KEY = "dictionary_sha256"


def adapt_state_dict(model: nn.Module, state: dict[str, Tensor], *, positions: str, reuse_heads: bool) -> None:
    """Change ``state`` in place so that it loads strictly into ``model``.

    * Heads: those of the model are taken from the checkpoint when ``reuse_heads`` and the shapes agree, else
      they start fresh; heads that the model lacks are left out. Both are logged.
    * ``positions`` (the position table's key) is cut when the model is shorter than the checkpoint.
    * The dictionary must be the one that the embeddings were trained with.

    Raises MuppetError for another dictionary, a model longer than the checkpoint, or one of other sizes.
    """
    own = model.state_dict()
    _check_dictionary(own, state)
    _fit_positions(own, state, positions)
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


def _check_dictionary(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    # fairseq's own checkpoints do not name their dictionary
    theirs = state.setdefault(DICTIONARY_KEY, own[DICTIONARY_KEY])
    if not theirs.equal(own[DICTIONARY_KEY]):
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


def _fit_heads(own: dict[str, Tensor], state: dict[str, Tensor], *, reuse_heads: bool) -> None:
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
