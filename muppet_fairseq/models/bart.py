"""``muppet_bart``: fairseq's BART with a head for each dataset or family, and its decoder as it is for generation."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart.model import BARTModel, bart_base_architecture, bart_large_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from muppet_fairseq.models.base import Hidden, Part, WithHeads
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY
from muppet_fairseq.models.layers import Decoder, Encoder
from muppet_fairseq.r3f import EmbeddingNoise, clean_and_noised

#: the keys of the vocabulary's rows; the three are one tensor in the model
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")


@register_model("muppet_bart")
class MuppetBartModel(WithHeads, BARTModel):
    """BART with heads.

    ``forward(src_tokens [R, T], head=name)``: encoder and decoder read the same row, the decoder one position
    later, as in fairseq's and BART's own fine-tuning; the head scores the state of the last ``</s>`` (``[R, n]``) or
    all states (``[R, T, n]``). Without ``head`` the decoder's features ``[R, T, D]``.

    ``forward(src_tokens, prev_output_tokens=[R, U], predicted=[N])``: scores ``[N, vocabulary]`` of the tokens that
    follow at the positions ``predicted`` of the flattened ``[R, U]``; no others are projected to the vocabulary.

    With ``noise`` it returns twice as many rows: the clean ones, then those of noised encoder embeddings (R3F).
    ``padded=False`` promises that no row of ``src_tokens`` is padded. ``prompt`` names the dataset whose prompt the
    encoder's rows begin with, in a model that has them: the decoder sees its states, but does not read it. ``part``
    stands in for the model's own prompt and head. With ``hidden`` it returns a pair: the same, and the states of each
    layer of the encoder, then of the decoder.
    """

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        TransformerModel.add_args(parser)
        WithHeads.add_head_args(parser)
        parser.add_argument("--pooler-dropout", type=float, metavar="D", help="dropout in the heads")

    @classmethod
    def build_encoder(cls, cfg: TransformerConfig, src_dict: Dictionary, embed_tokens: nn.Embedding) -> Encoder:
        return Encoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: TransformerConfig, tgt_dict: Dictionary, embed_tokens: nn.Embedding) -> Decoder:
        return Decoder(cfg, tgt_dict, embed_tokens)

    @classmethod
    def build_model(cls, args: Namespace, task: Any) -> MuppetBartModel:
        bart_arguments(args)
        args.max_source_positions = args.max_target_positions = task.max_positions()
        model = super().build_model(args, task)
        model.args = args
        # fairseq's own heads; ours are in ``heads``
        del model.classification_heads
        model.add_heads(args, task, args.decoder_output_dim, has_decoder=True)
        model.heads.apply(init_bert_params)
        model.normalize_heads(args)
        model.tune(args, task)
        return model

    @property
    def text_encoder(self) -> Encoder:
        return self.encoder

    def forward(
        self,
        src_tokens: Tensor,
        head: str | None = None,
        noise: EmbeddingNoise | None = None,
        prev_output_tokens: Tensor | None = None,
        predicted: Tensor | None = None,
        padded: bool = True,
        prompt: str | None = None,
        part: Part | None = None,
        hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Hidden]:
        embeddings, part = None, self.part(prompt, head) if part is None else part
        if noise is not None:
            if predicted is not None:
                predicted = torch.cat([predicted, predicted + prev_output_tokens.numel()])
                prev_output_tokens = prev_output_tokens.repeat(2, 1)
            encoder = self.encoder
            src_tokens, embeddings = clean_and_noised(encoder.embed_tokens, src_tokens, noise, encoder.padding_idx)
        encoded = self.encoder(
            src_tokens, return_all_hiddens=hidden, token_embeddings=embeddings, padded=padded, prompt=part.prompt
        )
        decoder_tokens = self.shifted(src_tokens) if prev_output_tokens is None else prev_output_tokens
        last = (src_tokens != self.encoder.padding_idx).sum(dim=1) - 1 if part.reads_sentence else None
        states = [] if hidden else None
        output = self.decoder.states(decoder_tokens, encoded, padded=padded, last=last, hidden=states)
        if predicted is not None:
            output = self.decoder.output_layer(output.flatten(0, 1).index_select(0, predicted))
        elif part.head is not None:
            output = part.head(output[:, 0] if part.reads_sentence else output)
        if not hidden:
            return output
        is_token = decoder_tokens != self.encoder.padding_idx
        of_decoder = [(layer.transpose(0, 1), is_token) for layer in states]
        return output, self.encoder.hidden(src_tokens, encoded) + of_decoder

    def shifted(self, tokens: Tensor) -> Tensor:
        """Rows ``[R, T]`` for the decoder: ``</s>``, then the tokens without their last one."""
        shifted = tokens.roll(1, dims=1)
        shifted[:, 0] = self.eos
        return shifted.masked_fill(tokens == self.encoder.padding_idx, self.encoder.padding_idx)

    def set_beam_size(self, beam: int) -> None:
        """Let cross-attention serve ``beam`` hypotheses with one row of encoder states; 1 undoes it.

        While it is set, ve-fairseq 0.12.3 takes every forward of its decoder for a search: the rows of a batch that is
        a multiple of ``beam`` would get each other's encoder states.
        """
        super().set_beam_size(beam)
        if beam == 1:
            vars(self.encoder).pop("reorder_encoder_out", None)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Take BART's own checkpoints and ours: see :meth:`WithHeads.adapt`."""
        self.complete(state_dict)
        # not BARTModel's: its rules are for its own heads and for mBART
        TransformerModel.upgrade_state_dict_named(self, state_dict, name)
        for key in [k for k in state_dict if k.startswith("classification_heads.")]:
            del state_dict[key]
        # a checkpoint of ours names its dictionary, which must then be the same
        for key in EMBEDDINGS if DICTIONARY_KEY not in state_dict else ():
            if key in state_dict:
                state_dict[key] = self._fit_vocabulary(state_dict[key])
        self.adapt(state_dict, positions=("encoder.embed_positions.weight", "decoder.embed_positions.weight"))

    def _fit_vocabulary(self, embeddings: Tensor) -> Tensor:
        """Fit the vocabulary's rows of the published checkpoints, where ``<mask>`` is last or missing.

        bart.base has 936 rows that no token uses before ``<mask>``; bart.large.cnn and bart.large.xsum end before
        ``<mask>``, which then gets the mean of all rows.
        """
        want = len(self.encoder.dictionary)
        if len(embeddings) > want:
            return torch.cat([embeddings[: want - 1], embeddings[-1:]])
        if len(embeddings) == want - 1:
            return torch.cat([embeddings, embeddings.mean(dim=0, keepdim=True)])
        return embeddings


def bart_arguments(args: Namespace) -> None:
    """Complete the model's arguments: bart.base's where nothing is set."""
    WithHeads.head_arguments(args)
    bart_base_architecture(args)


@register_model_architecture("muppet_bart", "muppet_bart")
@register_model_architecture("muppet_bart", "muppet_bart_base")
def muppet_bart_base(args: Namespace) -> None:
    bart_arguments(args)


@register_model_architecture("muppet_bart", "muppet_bart_large")
def muppet_bart_large(args: Namespace) -> None:
    bart_large_architecture(args)
    bart_arguments(args)


def _set_size(args: Namespace, layers: int, dim: int, heads: int) -> None:
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", dim)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 4 * dim)
    for side in ("encoder", "decoder"):
        setattr(args, f"{side}_layers", getattr(args, f"{side}_layers", layers))
        setattr(args, f"{side}_attention_heads", getattr(args, f"{side}_attention_heads", heads))


@register_model_architecture("muppet_bart", "muppet_bart_small")
def muppet_bart_small(args: Namespace) -> None:
    """3 + 3 layers x 256, for training on a CPU."""
    _set_size(args, layers=3, dim=256, heads=4)
    bart_arguments(args)


@register_model_architecture("muppet_bart", "muppet_bart_tiny")
def muppet_bart_tiny(args: Namespace) -> None:
    """2 + 2 layers x 64, for tests and for trying things on a CPU."""
    _set_size(args, layers=2, dim=64, heads=2)
    bart_arguments(args)
