"""``muppet_roberta``: fairseq's RoBERTa encoder with a head for each dataset or family."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from fairseq.models import FairseqEncoderModel, register_model, register_model_architecture
from fairseq.models.roberta.model import (
    RobertaEncoder,
    RobertaModel,
    base_architecture,
    init_bert_params,
    roberta_large_architecture,
)
from torch import Tensor, nn

from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, adapt_state_dict


class MuppetRobertaEncoder(RobertaEncoder):
    """RoBERTa's encoder without the masked-language-model head, which no supervised task trains."""

    def build_lm_head(self, embed_dim: int, output_dim: int, activation_fn: str, weight: Tensor) -> None:
        return None


@register_model("muppet_roberta")
class MuppetRobertaModel(FairseqEncoderModel):
    """RoBERTa with heads.

    ``forward(src_tokens [R, T], head=name)`` returns that head's scores (``[R, n]`` from the ``<s>`` state,
    or ``[R, T, n]``); without ``head`` the features ``[R, T, D]``. Heads that a sub-batch does not name are
    not computed.
    """

    def __init__(self, args: Namespace, encoder: MuppetRobertaEncoder, dictionary_sha256: str) -> None:
        super().__init__(encoder)
        self.args = args
        self.heads = nn.ModuleDict()
        #: names the dictionary that the embeddings belong to
        self.register_buffer(DICTIONARY_KEY, torch.tensor(list(bytes.fromhex(dictionary_sha256))).byte())

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        RobertaModel.add_args(parser)
        parser.add_argument(
            "--layer-norm-eps",
            type=float,
            metavar="E",
            help="epsilon of every layer norm (1e-5; BERT: 1e-12)",
        )

    @classmethod
    def build_model(cls, args: Namespace, task: Any) -> MuppetRobertaModel:
        roberta_arguments(args)
        args.max_positions = task.max_positions()
        args.max_source_positions = args.max_positions
        encoder = MuppetRobertaEncoder(args, task.source_dictionary)
        model = cls(args, encoder, task.dictionary_sha256)
        for name, head in task.build_heads(args.encoder_embed_dim, args.pooler_dropout).items():
            model.heads[name] = head
        model.apply(init_bert_params)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = args.layer_norm_eps
        model.reuse_heads = task.reuse_heads
        return model

    def forward(self, src_tokens: Tensor, head: str | None = None) -> Tensor:
        features, _ = self.encoder(src_tokens, features_only=True)
        if head is None:
            return features
        module = self.heads[head]
        return module(features[:, 0] if module.level == "sentence" else features)

    def max_positions(self) -> int:
        return self.args.max_positions

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Take RoBERTa's own checkpoints and ours: see :func:`adapt_state_dict`."""
        for key in list(state_dict):
            if key.startswith("decoder."):
                state_dict[f"encoder.{key.removeprefix('decoder.')}"] = state_dict.pop(key)
        for key in list(state_dict):
            if ".emb_layer_norm." in key:
                state_dict[key.replace(".emb_layer_norm.", ".layernorm_embedding.")] = state_dict.pop(key)
        super().upgrade_state_dict_named(state_dict, name)
        for key in [k for k in state_dict if k.startswith(("encoder.lm_head.", "classification_heads."))]:
            del state_dict[key]
        adapt_state_dict(
            self,
            state_dict,
            positions="encoder.sentence_encoder.embed_positions.weight",
            reuse_heads=self.reuse_heads,
        )


def roberta_arguments(args: Namespace, layer_norm_eps: float = 1e-5) -> None:
    """Complete the model's arguments: RoBERTa's defaults where nothing is set."""
    args.layer_norm_eps = getattr(args, "layer_norm_eps", layer_norm_eps)
    base_architecture(args)


@register_model_architecture("muppet_roberta", "muppet_roberta")
@register_model_architecture("muppet_roberta", "muppet_roberta_base")
def muppet_roberta_base(args: Namespace) -> None:
    roberta_arguments(args)


@register_model_architecture("muppet_roberta", "muppet_roberta_large")
def muppet_roberta_large(args: Namespace) -> None:
    roberta_large_architecture(args)
    roberta_arguments(args)


def _set_size(args: Namespace, layers: int, dim: int, heads: int) -> None:
    args.encoder_layers = getattr(args, "encoder_layers", layers)
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", dim)
    args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 4 * dim)
    args.encoder_attention_heads = getattr(args, "encoder_attention_heads", heads)


@register_model_architecture("muppet_roberta", "muppet_minilm")
def muppet_minilm(args: Namespace) -> None:
    """all-MiniLM-L6 (6 layers x 384), a BERT layout: the encoder of the quickstart."""
    _set_size(args, layers=6, dim=384, heads=12)
    roberta_arguments(args, layer_norm_eps=1e-12)


@register_model_architecture("muppet_roberta", "muppet_roberta_tiny")
def muppet_roberta_tiny(args: Namespace) -> None:
    """2 layers x 64, for tests and for trying things on a CPU."""
    _set_size(args, layers=2, dim=64, heads=2)
    roberta_arguments(args)
