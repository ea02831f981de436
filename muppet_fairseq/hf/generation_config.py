"""The content of ``generation_config.json``: transformers' ``generate`` then writes the texts that ours writes."""

from __future__ import annotations

from typing import Any

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.generation import GenerationOptions


def generation_config(
    options: GenerationOptions, *, bos: int, pad: int, eos: int, max_positions: int
) -> dict[str, Any]:
    """Return the options of our beam search as those of transformers, for a ``BartForConditionalGeneration``.

    Args:
        options: of our search.
        bos, pad, eos: ids in the Hugging Face vocabulary; ``eos`` is also what the decoder begins with.
        max_positions: of the decoder, ``max_position_embeddings``.

    Raises:
        MuppetError: transformers has no such option, or ``min_len`` does not fit into ``max_positions``.
    """
    if options.max_len_a:
        raise MuppetError(
            f"the generation option max_len_a is {options.max_len_a}, but a generation_config.json knows no length "
            "that depends on the source; set it to 0 and max_len_b to the longest that a text may be"
        )
    if options.no_repeat_ngram_size == 1:
        raise MuppetError(
            "the generation option no_repeat_ngram_size is 1, but with a generation_config.json that would forbid "
            "</s>, too, which the decoder begins with; give 0 or at least 2"
        )
    config = {
        "bos_token_id": bos,
        "pad_token_id": pad,
        "eos_token_id": eos,
        "decoder_start_token_id": eos,
        "forced_bos_token_id": bos,
        "forced_eos_token_id": eos,
        "suppress_tokens": [pad],  # fairseq never chooses it
        "do_sample": False,
        "num_beams": options.beam,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        # transformers counts the </s> that the decoder begins with, <s>, and in the maximum the final </s>
        "min_length": options.min_len + 2,
        "max_length": options.last_step(0, max_positions) + 2,
    }
    if options.beam > 1:  # else transformers calls these a mistake
        # fairseq's search ends with as many finished texts as there are beams
        config |= {"early_stopping": True, "length_penalty": options.lenpen}
    return config
