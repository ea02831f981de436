"""fairseq's Transformer with less to compute: its parameters by their names and shapes, its results to rounding.

What is left out is what nobody reads. A head on the sentence's vector needs the last layer at one position of a row,
where keys and values come from all. The decoder's attention weights are for alignments. Whether rows are padded is
known where they are put together: nothing here waits for the device to tell.

Everywhere states are ``[T, R, D]`` (positions, rows, width), as in fairseq: PyTorch's attention reads the heads of
such states where they lie. Options that need fairseq's own layers (quantisation noise, xFormers) get these.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

import torch
from fairseq.distributed import FullyShardedDataParallel, fsdp_wrap
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase, TransformerEncoderBase
from fairseq.modules import MultiheadAttention, gelu
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn
from torch.nn import functional as F

from muppet_fairseq.errors import MuppetError


def attend(
    attention: MultiheadAttention, query: Tensor, memory: Tensor, mask: Tensor | None, *, causal: bool = False
) -> Tensor:
    """What ``attention`` gives for ``query`` ``[U, R, D]`` over ``memory`` ``[T, R, D]``: ``[U, R, D]``.

    Args:
        mask: added to the scores: :func:`padding_mask`, or None.
        causal: position ``u`` sees those up to ``u``.
    """

    def by_head(states: Tensor) -> Tensor:
        return states.unflatten(2, (attention.num_heads, attention.head_dim)).permute(1, 2, 0, 3)

    dropout = attention.dropout_module
    attended = F.scaled_dot_product_attention(
        by_head(attention.q_proj(query)),
        by_head(attention.k_proj(memory)),
        by_head(attention.v_proj(memory)),
        attn_mask=mask,
        dropout_p=dropout.p if attention.training or dropout.apply_during_inference else 0.0,
        is_causal=causal,
    )
    return attention.out_proj(attended.permute(2, 0, 1, 3).flatten(2))


def padding_mask(is_padding: Tensor, like: Tensor) -> Tensor:
    """What is added to attention scores so that no padding (bool ``[R, T]``) is seen: ``[R, 1, 1, T]``."""
    return torch.zeros_like(is_padding, dtype=like.dtype).masked_fill_(is_padding, float("-inf"))[:, None, None]


def _feed_forward(layer: EncoderLayer | DecoderLayer, x: Tensor) -> Tensor:
    """The second half of either layer."""
    residual = x
    if layer.normalize_before:
        x = layer.final_layer_norm(x)
    x = layer.activation_dropout_module(layer.activation_fn(layer.fc1(x)))
    x = layer.dropout_module(layer.fc2(x))
    if layer.adapter is not None:
        x = layer.adapter(x)
    x = residual + x
    return x if layer.normalize_before else layer.final_layer_norm(x)


def _use_pytorchs_gelu(layer: EncoderLayer | DecoderLayer) -> None:
    """fairseq's goes through a float32 copy, which in half precision is kept for the backward pass."""
    if layer.activation_fn is gelu:
        layer.activation_fn = F.gelu


def _wrapped(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """Wrap a layer as fairseq does."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class EncoderLayer(TransformerEncoderLayerBase):
    """fairseq's, on less."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        _use_pytorchs_gelu(self)
        self.register_module("adapter", None)

    def forward(self, x: Tensor, mask: Tensor | None, only: int | None = None) -> Tensor:
        """States ``[T, R, D]``; those of the position ``only`` alone are ``[1, R, D]``.

        Args:
            mask: :func:`padding_mask`, or None where no row is padded.
        """
        memory = self.self_attn_layer_norm(x) if self.normalize_before else x
        query = memory
        if only is not None:
            x, query = x[only : only + 1], memory[only : only + 1]
        x = x + self.dropout_module(attend(self.self_attn, query, memory, mask))
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        return _feed_forward(self, x)


#: the name of an encoder's buffer of segments
SEGMENTS = "embed_segments"


class Encoder(TransformerEncoderBase):
    """fairseq's encoder of :class:`EncoderLayer`.

    Attributes:
        embed_segments: what a checkpoint made of a BERT has and fairseq's encoder has not, ``[segments, D]``: row 0 is
            added to every token. It is a buffer, which no training changes: the positions can learn as much. None, of
            a model that has loaded no such checkpoint.
    """

    embed_segments: Tensor | None

    def __init__(self, cfg: TransformerConfig, *arguments: Any, **keywords: Any) -> None:
        #: whether options need fairseq's own layers
        self.is_unusual = cfg.quant_noise.pq > 0 or cfg.encoder.xformers_att_config is not None
        super().__init__(cfg, *arguments, **keywords)
        self.register_buffer(SEGMENTS, None)

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """fairseq's, with the segment in ``token_embedding`` ``[R, T, D]``."""
        if self.embed_segments is not None:
            tokens = self.embed_tokens(src_tokens) if token_embedding is None else token_embedding
            token_embedding = tokens + self.embed_segments[0] / self.embed_scale
        return super().forward_embedding(src_tokens, token_embedding)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Make room for the segments of a checkpoint. Raises MuppetError where they are none."""
        segments = state_dict.get(f"{name}.{SEGMENTS}")
        if segments is not None:
            width = self.embed_tokens.embedding_dim
            if segments.dim() != 2 or len(segments) < 1 or segments.shape[1] != width:
                raise MuppetError(
                    f"the checkpoint's {name}.{SEGMENTS} has shape {tuple(segments.shape)}, not (segments, {width}): "
                    "choose the --arch (and its sizes) that the checkpoint was made with"
                )
            self.embed_segments = self.embed_tokens.weight.new_zeros(segments.shape)
        return super().upgrade_state_dict_named(state_dict, name)

    def build_encoder_layer(self, cfg: TransformerConfig) -> nn.Module:
        return super().build_encoder_layer(cfg) if self.is_unusual else _wrapped(EncoderLayer(cfg), cfg)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        padded: bool = True,
        first_only: bool = False,
        prompt: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """fairseq's, for rows ``src_tokens`` ``[R, T]`` that end in padding, if in any.

        Args:
            padded: False promises that there is no padding.
            return_all_hiddens: give the embeddings and each layer's states as ``encoder_states``, all positions.
            first_only: give the states of the first token alone: ``encoder_out`` is ``[1, R, D]``.
            prompt: vectors ``[L, D]`` that every row begins with; then all that is given is of ``L + T`` positions. The
                tokens keep the positions that they have without it.
        """
        if self.is_unusual:
            encoded = super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
            return encoded | {"encoder_out": [encoded["encoder_out"][0][:1]]} if first_only else encoded
        is_padding = src_tokens.eq(self.padding_idx)
        x, embeddings = self.forward_embedding(src_tokens, token_embeddings)
        mask = None
        if padded:
            x = x.masked_fill(is_padding.unsqueeze(2), 0.0)
            mask = padding_mask(is_padding, like=x)
        start = 0
        if prompt is not None:
            start = len(prompt)
            x = torch.cat([self._before(prompt, rows=len(x)), x], dim=1)
            is_padding = F.pad(is_padding, (start, 0))
            mask = None if mask is None else F.pad(mask, (start, 0))
        x = x.transpose(0, 1)
        if self.cfg.checkpoint_activations and torch.is_grad_enabled() and not x.requires_grad:
            # what is computed again gets a gradient only where something that goes in has one: frozen embeddings
            # would leave the layers without
            x.requires_grad_()
        states = [x] if return_all_hiddens else []
        layers = list(self.layers)  # of --encoder-layerdrop, those that are left
        # the layer that is computed where it is read; 0 is the embeddings
        last = 0 if return_all_hiddens else len(layers)
        for number, layer in enumerate(layers, start=1):
            x = layer(x, mask, only=start if first_only and number == last else None)
            if return_all_hiddens:
                states.append(x)
        if first_only and not last:
            x = x[start : start + 1]
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [is_padding],
            "encoder_embedding": [embeddings],
            "encoder_states": states,
            "src_tokens": [],
            "src_lengths": [],
        }

    def hidden(self, src_tokens: Tensor, encoded: dict[str, list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Each layer's states ``[R, T, D]`` in what :meth:`forward` gave with ``return_all_hiddens`` for ``src_tokens``
        ``[R, T]``, without a prompt's; with each, which of the positions are tokens: bool ``[R, T]``."""
        is_token = src_tokens != self.padding_idx
        length = src_tokens.shape[1]
        return [(layer.transpose(0, 1)[:, -length:], is_token) for layer in encoded["encoder_states"][1:]]

    def read(self, tokens: Tensor) -> Tensor:
        """The vectors ``[L, D]`` that the first layer reads of tokens ``[L]``, were they at no position."""
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.embed_segments is not None:
            x = x + self.embed_segments[0]
        return x if self.layernorm_embedding is None else self.layernorm_embedding(x)

    def _before(self, prompt: Tensor, rows: int) -> Tensor:
        """A prompt ``[L, D]`` before each row, ``[R, L, D]``: the first layer reads it as it is.

        As in T5, for which prompts were made. Another norm of the embeddings would undo every factor of a vector, and
        with it the ``u_k`` of decomposed prompts. The table of positions has none for them: where they are is learnt.
        """
        return self.dropout_module(prompt.expand(rows, -1, -1))


class DecoderLayer(TransformerDecoderLayerBase):
    """fairseq's, on less where the whole target is given."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        _use_pytorchs_gelu(self)
        self.register_module("adapter", None)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        *arguments: Any,
        given: bool = False,
        last: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """fairseq's, which writes a target bit by bit; with ``given`` the states ``[U, R, D]`` of a whole one.

        Args:
            encoder_padding_mask: with ``given``, :func:`padding_mask` or None.
            last: int64 ``[R]``: give the states of these positions alone, ``[1, R, D]``. Then encoder and decoder
                read rows of the same lengths, which end there; the encoder's may have a prompt before them.
        """
        if not given:
            return super().forward(x, encoder_out, encoder_padding_mask, *arguments, **options)
        memory = self.self_attn_layer_norm(x) if self.normalize_before else x
        query = memory
        if last is not None:
            x, query = _at(x, last), _at(memory, last)
        # what follows a token is hidden from it, and so is padding, which follows all; the last token sees all but that
        mask = None if last is None or encoder_padding_mask is None else encoder_padding_mask[..., -len(memory) :]
        seen = attend(self.self_attn, query, memory, mask, causal=last is None)
        x = x + self.dropout_module(seen)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        query = self.encoder_attn_layer_norm(x) if self.normalize_before else x
        x = x + self.dropout_module(attend(self.encoder_attn, query, encoder_out, encoder_padding_mask))
        if not self.normalize_before:
            x = self.encoder_attn_layer_norm(x)
        return _feed_forward(self, x)


class Decoder(TransformerDecoderBase):
    """fairseq's decoder of :class:`DecoderLayer`."""

    def __init__(self, cfg: TransformerConfig, *arguments: Any, **keywords: Any) -> None:
        #: whether options need fairseq's own layers
        self.is_unusual = (
            cfg.quant_noise.pq > 0
            or cfg.decoder.xformers_att_config is not None
            or cfg.encoder.xformers_att_config is not None
            or cfg.cross_self_attention
            or cfg.no_cross_attention
            or cfg.base_layers > 0
        )
        super().__init__(cfg, *arguments, **keywords)

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> nn.Module:
        if self.is_unusual:
            return super().build_decoder_layer(cfg, no_encoder_attn)
        return _wrapped(DecoderLayer(cfg), cfg)

    def states(
        self,
        tokens: Tensor,
        encoded: dict[str, list[Tensor]],
        *,
        padded: bool = True,
        last: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """The states ``[R, U, D]`` of whole targets ``[R, U]`` that end in padding, if in any.

        Args:
            encoded: what :class:`Encoder` gives.
            padded: False promises that the encoder's rows have no padding.
            last: the last position of each row; give its states alone, ``[R, 1, D]``. Encoder and decoder read rows of
                the same lengths.
            hidden: gets each layer's states ``[U, R, D]``.
        """
        if self.is_unusual:
            states, more = self.extract_features(tokens, encoded)
            if hidden is not None:
                hidden += more["inner_states"][1:]
            return states if last is None else _at(states.transpose(0, 1), last).transpose(0, 1)
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if self.embed_positions is not None:
            x = x + self.embed_positions(tokens)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x).transpose(0, 1)
        mask = padding_mask(encoded["encoder_padding_mask"][0], like=x) if padded else None
        layers = list(self.layers)  # of --decoder-layerdrop, those that are left
        # as the encoder's
        final = 0 if hidden is not None else len(layers)
        for number, layer in enumerate(layers, start=1):
            x = layer(x, encoded["encoder_out"][0], mask, given=True, last=last if number == final else None)
            if hidden is not None:
                hidden.append(x)
        if last is not None and not final:
            x = _at(x, last)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)
        return x if self.project_out_dim is None else self.project_out_dim(x)


def compile_layers(model: nn.Module) -> None:
    """Have PyTorch compile the layers of ``model`` for rows of any number and length (``--compile``).

    They are compiled where they are first called, and keep their parameters' names. Raises MuppetError where that
    cannot work.
    """
    layers = [module for module in model.modules() if isinstance(module, (EncoderLayer, DecoderLayer))]
    compiler = os.environ.get("CXX", "g++")
    for wrong, sentence in (
        (shutil.which(compiler) is None, f"--compile needs a C++ compiler, and there is no {compiler}: install one"),
        (
            torch.cuda.is_available() and importlib.util.find_spec("triton") is None,
            "--compile needs the package triton on a GPU: pip install triton",
        ),
        (not layers, "--compile does not go with --quant-noise-pq or xFormers: leave these out"),
        (
            any(isinstance(module, FullyShardedDataParallel) for module in model.modules()),
            "--compile does not go with --ddp-backend fully_sharded: choose legacy_ddp or pytorch_ddp",
        ),
        (
            any(hasattr(layer, "precheckpoint_forward") for layer in layers),
            "--compile does not go with --checkpoint-activations: leave that out",
        ),
    ):
        if wrong:
            raise MuppetError(f"{sentence}, or do without --compile")
    from torch._dynamo import config  # which takes seconds to import, at every start

    # the layers share their code: with and without padding, a gradient, one row, and the last layer
    config.recompile_limit = max(config.recompile_limit, 64)
    for layer in layers:
        layer.compile(dynamic=True)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """The states ``[1, R, D]`` of one position ``[R]`` of each row."""
    return states.gather(0, positions[None, :, None].expand(1, -1, states.shape[2]))
