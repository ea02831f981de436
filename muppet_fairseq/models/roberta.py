"""``muppet_roberta``: fairseq's RoBERTa encoder with a head for each dataset or family."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderModel, register_model, register_model_architecture
from fairseq.models.roberta.model import (
    RobertaEncoder,
    RobertaModel,
    base_architecture,
    init_bert_params,
    roberta_large_architecture,
)
from fairseq.models.transformer import TransformerConfig
from torch import Tensor, nn

from muppet_fairseq.models.base import Hidden, Part, WithHeads
from muppet_fairseq.models.layers import Encoder
from muppet_fairseq.r3f import EmbeddingNoise, clean_and_noised


class MuppetRobertaEncoder(RobertaEncoder):
    """RoBERTa's encoder without the masked-language-model head, which no supervised task trains."""

    def build_encoder(self, args: Namespace, dictionary: Dictionary, embed_tokens: nn.Embedding) -> Encoder:
        encoder = Encoder(TransformerConfig.from_namespace(args), dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(self, embed_dim: int, output_dim: int, activation_fn: str, weight: Tensor) -> None:
        return None


@register_model("muppet_roberta")
class MuppetRobertaModel(WithHeads, FairseqEncoderModel):
    """RoBERTa with heads.

    ``forward(src_tokens [R, T], head=name)`` returns that head's scores (``[R, n]`` from the ``<s>`` state,
    or ``[R, T, n]``); without ``head`` the features ``[R, T, D]``. With ``noise`` it returns twice as many rows: the
    clean ones, then those of noised embeddings (R3F). ``padded=False`` promises that no row is padded. ``prompt`` names
    the dataset whose prompt rows begin with, in a model that has them; features and scores are the tokens' alone.
    ``part`` stands in for the model's own prompt and head. With ``hidden`` it returns a pair: the same, and each
    layer's states.
    """

    def __init__(self, args: Namespace, encoder: MuppetRobertaEncoder) -> None:
        super().__init__(encoder)
        self.args = args

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        RobertaModel.add_args(parser)
        WithHeads.add_head_args(parser)
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
        model = cls(args, MuppetRobertaEncoder(args, task.source_dictionary))
        model.add_heads(args, task, args.encoder_embed_dim, has_decoder=False)
        model.apply(init_bert_params)
        model.normalize_heads(args)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = args.layer_norm_eps
        model.tune(args, task)
        return model

    @property
    def text_encoder(self) -> Encoder:
        return self.encoder.sentence_encoder

    def forward(
        self,
        src_tokens: Tensor,
        head: str | None = None,
        noise: EmbeddingNoise | None = None,
        padded: bool = True,
        prompt: str | None = None,
        part: Part | None = None,
        hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Hidden]:
        encoder, embeddings = self.text_encoder, None
        part = self.part(prompt, head) if part is None else part
        if noise is not None:
            src_tokens, embeddings = clean_and_noised(encoder.embed_tokens, src_tokens, noise, encoder.padding_idx)
        encoded = encoder(
            src_tokens,
            return_all_hiddens=hidden,
            token_embeddings=embeddings,
            padded=padded,
            first_only=part.reads_sentence,
            prompt=part.prompt,
        )
        output = encoded["encoder_out"][0].transpose(0, 1)
        output = output[:, 0] if part.reads_sentence else output[:, -src_tokens.shape[1] :]
        if part.head is not None:
            output = part.head(output)
        return (output, encoder.hidden(src_tokens, encoded)) if hidden else output

    def max_positions(self) -> int:
        return self.args.max_positions

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Take RoBERTa's own checkpoints and ours: see :meth:`WithHeads.adapt`."""
        self.complete(state_dict)
        for key in list(state_dict):
            if key.startswith("decoder."):
                state_dict[f"encoder.{key.removeprefix('decoder.')}"] = state_dict.pop(key)
        for key in list(state_dict):
            if ".emb_layer_norm." in key:
                state_dict[key.replace(".emb_layer_norm.", ".layernorm_embedding.")] = state_dict.pop(key)
        super().upgrade_state_dict_named(state_dict, name)
        for key in [k for k in state_dict if k.startswith(("encoder.lm_head.", "classification_heads."))]:
            del state_dict[key]
        self.adapt(state_dict, positions=("encoder.sentence_encoder.embed_positions.weight",))


def roberta_arguments(args: Namespace, layer_norm_eps: float = 1e-5) -> None:
    """Complete the model's arguments: RoBERTa's defaults where nothing is set."""
    args.layer_norm_eps = getattr(args, "layer_norm_eps", layer_norm_eps)
    WithHeads.head_arguments(args)
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
