"""How encoders (BERT, RoBERTa, XLM-R) and BART are called in Hugging Face layout and in fairseq, both ways.

Nothing is computed differently: BERT's and RoBERTa's encoders are fairseq's post-norm Transformer encoder under other
names, and BART's parts have fairseq's names, up to

* the order of the vocabulary: fairseq's dictionaries begin with ``<s> <pad> </s> <unk>`` and end with ``<mask>``, so
  the rows of the embedding are permuted;
* positions: fairseq counts them from ``pad + 1 = 2``, so BERT's table begins two rows further down;
* segments: ours have one, to whose row 0 all tokens belong; it is no parameter
  (:class:`muppet_fairseq.models.layers.Encoder`), and a RoBERTa's, which is zero, is left out;
* ``layer_norm_eps``, which fairseq fixes at 1e-5: it is an option of ``muppet_roberta``.

Every map is of whole tensors, so what is read and written again is the same bit for bit.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.models.layers import SEGMENTS

#: fairseq's positions begin after the number of ``<pad>`` in its dictionaries
FIRST_POSITION = 2

#: Hugging Face's names of activation functions: fairseq's names of the same functions
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "relu": "relu",
}
#: of those that fairseq calls alike, the first
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

#: of tables and matrices, and of layers: beyond them is no model, but an attack on the memory
_LARGEST_SIZE = 1 << 24
_MOST_LAYERS = 1000

_ENCODER = "encoder.sentence_encoder"
_ENCODER_NAMES = {
    "embeddings.LayerNorm": "layernorm_embedding",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}
_BART_MODULES = ("k_proj", "v_proj", "q_proj", "out_proj")


@dataclass(frozen=True)
class ModelLayout(ABC):
    """The sizes of one model, under the names of its ``config.json``.

    Attributes:
        model_type: Hugging Face's word for the architecture.
        vocab_size: rows of the embedding.
        pad_token_id: of Hugging Face's vocabulary.
    """

    model_type: str
    vocab_size: int
    pad_token_id: int

    #: model types that are of this layout: what their parameters' names begin with in a model with a head
    prefixes: ClassVar[Mapping[str, str]]
    #: what ``config.json`` may leave out
    defaults: ClassVar[Mapping[str, Any]]
    #: what it may say, and nothing else
    wanted: ClassVar[Mapping[str, Any]]
    #: ``--arch`` of such a model: the options say all sizes
    architecture: ClassVar[str]

    @property
    def prefix(self) -> str:
        return self.prefixes[self.model_type]

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Tokens of the longest text, ``<s>`` and ``</s>`` included."""

    @classmethod
    @abstractmethod
    def of_options(cls, model_type: str, options: Namespace, state: Mapping[str, Tensor], pad: int) -> ModelLayout:
        """The layout of a fairseq model, given its options and tensors. Raises MuppetError where it has none."""

    @abstractmethod
    def fairseq_options(self) -> dict[str, Any]:
        """Return the options that build this model."""

    @abstractmethod
    def config(self, bos: int, eos: int) -> dict[str, Any]:
        """Return ``config.json`` of the model without a head."""

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the model's tensors: Hugging Face's name without the prefix -> shape."""

    @abstractmethod
    def tied(self) -> Mapping[str, str]:
        """Return tensors of heads that are, or are tied to, others: full name -> full name of the same tensor."""

    @abstractmethod
    def to_fairseq(self, tensors: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        """Return fairseq's tensors, given those of :meth:`shapes`; ``rows``: id of each dictionary index, -1: none."""

    @abstractmethod
    def from_fairseq(self, state: Mapping[str, Tensor], ids: np.ndarray) -> dict[str, Tensor]:
        """Return the tensors of :meth:`shapes`, given fairseq's; ``ids`` ``[len(dictionary)]``: as ``rows``."""


@dataclass(frozen=True)
class EncoderLayout(ModelLayout):
    """BERT, RoBERTa or XLM-R, without its pooler."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    layer_norm_eps: float

    prefixes: ClassVar[Mapping[str, str]] = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
    defaults: ClassVar[Mapping[str, Any]] = {
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
    }
    wanted: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    architecture: ClassVar[str] = "muppet_roberta_base"

    @property
    def position_offset(self) -> int:
        """The row of the position table that the first token of a text uses."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings - self.position_offset

    @classmethod
    def of_options(cls, model_type: str, options: Namespace, state: Mapping[str, Tensor], pad: int) -> EncoderLayout:
        _require(
            options,
            encoder_normalize_before=False,
            layernorm_embedding=True,
            encoder_learned_pos=True,
            no_token_positional_embeddings=False,
            no_scale_embedding=True,
            adaptive_input=False,
        )
        words = state[f"{_ENCODER}.embed_tokens.weight"]
        segments = state.get(f"{_ENCODER}.{SEGMENTS}")
        positions = len(state[f"{_ENCODER}.embed_positions.weight"]) - FIRST_POSITION
        return cls(
            model_type,
            vocab_size=len(words),
            pad_token_id=pad,
            hidden_size=words.shape[1],
            num_hidden_layers=_count_layers(state, _ENCODER),
            num_attention_heads=options.encoder_attention_heads,
            intermediate_size=len(state[f"{_ENCODER}.layers.0.fc1.weight"]),
            max_position_embeddings=positions + (0 if model_type == "bert" else pad + 1),
            type_vocab_size=1 if segments is None else len(segments),
            hidden_act=_their_activation(options),
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.attention_dropout,
            layer_norm_eps=options.layer_norm_eps,
        )

    def fairseq_options(self) -> dict[str, Any]:
        return {
            "_name": self.architecture,
            "arch": self.architecture,
            "encoder_layers": self.num_hidden_layers,
            "encoder_embed_dim": self.hidden_size,
            "encoder_ffn_embed_dim": self.intermediate_size,
            "encoder_attention_heads": self.num_attention_heads,
            "max_positions": self.max_positions,
            "activation_fn": ACTIVATIONS[self.hidden_act],
            "dropout": self.hidden_dropout_prob,
            "attention_dropout": self.attention_probs_dropout_prob,
            "activation_dropout": 0.0,
            "layer_norm_eps": self.layer_norm_eps,
        }

    def config(self, bos: int, eos: int) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"bos_token_id": bos, "eos_token_id": eos}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        d, f = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, d),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, d),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, d),
        }
        linear = {"intermediate.dense": (f, d), "output.dense": (d, f)}
        for theirs in self._names():
            module, _, kind = theirs.rpartition(".")
            module = re.sub(r"^encoder\.layer\.\d+\.", "", module)
            weight = (d,) if module.endswith("LayerNorm") else linear.get(module, (d, d))
            shapes[theirs] = weight if kind == "weight" else weight[:1]
        return shapes

    def tied(self) -> Mapping[str, str]:
        words = f"{self.prefix}embeddings.word_embeddings.weight"
        head = "cls.predictions" if self.model_type == "bert" else "lm_head"
        return {f"{head}.decoder.weight": words, f"{head}.decoder.bias": f"{head}.bias"}

    def to_fairseq(self, tensors: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        positions = tensors["embeddings.position_embeddings.weight"]
        state = {
            "version": torch.tensor([3.0]),  # of fairseq's TransformerEncoder; without it old rules would apply
            "embed_tokens.weight": _permuted(tensors["embeddings.word_embeddings.weight"], rows),
            "embed_positions.weight": _shifted(positions, FIRST_POSITION - self.position_offset),
            **{ours: tensors[theirs] for theirs, ours in self._names().items()},
        }
        segments = tensors["embeddings.token_type_embeddings.weight"]
        if len(segments) > 1 or segments.any():
            state[SEGMENTS] = segments
        return {f"{_ENCODER}.{name}": tensor.contiguous() for name, tensor in state.items()}

    def from_fairseq(self, state: Mapping[str, Tensor], ids: np.ndarray) -> dict[str, Tensor]:
        words = _permuted(state[f"{_ENCODER}.embed_tokens.weight"], np.argsort(ids).tolist())
        positions = state[f"{_ENCODER}.embed_positions.weight"]
        segments = state.get(f"{_ENCODER}.{SEGMENTS}", words.new_zeros(1, self.hidden_size))
        return {
            "embeddings.word_embeddings.weight": words,
            "embeddings.position_embeddings.weight": _shifted(positions, self.position_offset - FIRST_POSITION),
            "embeddings.token_type_embeddings.weight": segments,
            **{theirs: state[f"{_ENCODER}.{ours}"] for theirs, ours in self._names().items()},
        }

    def _names(self) -> dict[str, str]:
        """Of the tensors that are the same: Hugging Face's name -> fairseq's."""
        names = {}
        for theirs, ours in _ENCODER_NAMES.items():
            for kind in ("weight", "bias"):
                if theirs.startswith("embeddings."):
                    names[f"{theirs}.{kind}"] = f"{ours}.{kind}"
                    continue
                for layer in range(self.num_hidden_layers):
                    names[f"encoder.layer.{layer}.{theirs}.{kind}"] = f"layers.{layer}.{ours}.{kind}"
        return names


@dataclass(frozen=True)
class BartLayout(ModelLayout):
    """BART: all names but the embedding's are fairseq's own."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_position_embeddings: int
    activation_function: str
    dropout: float
    attention_dropout: float
    activation_dropout: float
    classifier_dropout: float
    scale_embedding: bool

    prefixes: ClassVar[Mapping[str, str]] = {"bart": "model."}
    defaults: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "classifier_dropout": 0.0,
        "scale_embedding": False,
    }
    #: the names of options that came and went; each but the first said what BART is not
    wanted: ClassVar[Mapping[str, Any]] = {
        "tie_word_embeddings": True,
        "normalize_before": False,
        "add_final_layer_norm": False,
        "normalize_embedding": True,
        "static_position_embeddings": False,
    }
    architecture: ClassVar[str] = "muppet_bart_base"

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings

    @classmethod
    def of_options(cls, model_type: str, options: Namespace, state: Mapping[str, Tensor], pad: int) -> BartLayout:
        _require(
            options,
            encoder_normalize_before=False,
            decoder_normalize_before=False,
            layernorm_embedding=True,
            encoder_learned_pos=True,
            decoder_learned_pos=True,
            no_token_positional_embeddings=False,
            no_cross_attention=False,
            cross_self_attention=False,
            share_all_embeddings=True,
            share_decoder_input_output_embed=True,
            adaptive_input=False,
            adaptive_softmax_cutoff=None,
        )
        words = state["encoder.embed_tokens.weight"]
        return cls(
            model_type,
            vocab_size=len(words),
            pad_token_id=pad,
            d_model=words.shape[1],
            encoder_layers=_count_layers(state, "encoder"),
            decoder_layers=_count_layers(state, "decoder"),
            encoder_attention_heads=options.encoder_attention_heads,
            decoder_attention_heads=options.decoder_attention_heads,
            encoder_ffn_dim=len(state["encoder.layers.0.fc1.weight"]),
            decoder_ffn_dim=len(state["decoder.layers.0.fc1.weight"]),
            max_position_embeddings=len(state["encoder.embed_positions.weight"]) - FIRST_POSITION,
            activation_function=_their_activation(options),
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            activation_dropout=options.activation_dropout,
            classifier_dropout=options.pooler_dropout,
            scale_embedding=not options.no_scale_embedding,
        )

    def fairseq_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "_name": self.architecture,
            "arch": self.architecture,
            "max_positions": self.max_positions,
            "activation_fn": ACTIVATIONS[self.activation_function],
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "pooler_dropout": self.classifier_dropout,
            "no_scale_embedding": not self.scale_embedding,
        }
        for side in ("encoder", "decoder"):
            options[f"{side}_embed_dim"] = self.d_model
            options[f"{side}_layers"] = getattr(self, f"{side}_layers")
            options[f"{side}_ffn_embed_dim"] = getattr(self, f"{side}_ffn_dim")
            options[f"{side}_attention_heads"] = getattr(self, f"{side}_attention_heads")
        return options

    def config(self, bos: int, eos: int) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        special = {"bos_token_id": bos, "eos_token_id": eos, "decoder_start_token_id": eos}
        # how texts are written is said in generation_config.json
        return own | special | {"is_encoder_decoder": True, "forced_eos_token_id": None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        d = self.d_model
        shapes: dict[str, tuple[int, ...]] = {"shared.weight": (self.vocab_size, d)}
        for side in ("encoder", "decoder"):
            f = getattr(self, f"{side}_ffn_dim")
            shapes[f"{side}.embed_positions.weight"] = (self.max_position_embeddings + FIRST_POSITION, d)
            weights: dict[str, tuple[int, ...]] = {f"{side}.layernorm_embedding": (d,)}
            for layer in range(getattr(self, f"{side}_layers")):
                place = f"{side}.layers.{layer}"
                for attention in ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",):
                    weights |= {f"{place}.{attention}.{module}": (d, d) for module in _BART_MODULES}
                    weights[f"{place}.{attention}_layer_norm"] = (d,)
                weights |= {f"{place}.fc1": (f, d), f"{place}.fc2": (d, f), f"{place}.final_layer_norm": (d,)}
            for module, weight in weights.items():
                shapes |= {f"{module}.weight": weight, f"{module}.bias": weight[:1]}
        return shapes

    def tied(self) -> Mapping[str, str]:
        copies = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        return dict.fromkeys(copies, "model.shared.weight")

    def to_fairseq(self, tensors: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        words = _permuted(tensors["shared.weight"], rows)
        state = {name: tensor.contiguous() for name, tensor in tensors.items() if name != "shared.weight"}
        version = torch.tensor([3.0])
        state |= {f"{side}.version": version for side in ("encoder", "decoder")}
        state |= {f"{side}.embed_tokens.weight": words for side in ("encoder", "decoder")}
        return state | {"decoder.output_projection.weight": words}

    def from_fairseq(self, state: Mapping[str, Tensor], ids: np.ndarray) -> dict[str, Tensor]:
        words = _permuted(state["encoder.embed_tokens.weight"], np.argsort(ids).tolist())
        return {"shared.weight": words} | {name: state[name] for name in self.shapes() if name != "shared.weight"}


#: model type -> its layout
LAYOUTS: dict[str, type[ModelLayout]] = {
    model_type: layout for layout in (EncoderLayout, BartLayout) for model_type in layout.prefixes
}


def read_layout(content: Mapping[str, Any], path: object) -> ModelLayout:
    """Read the content of ``config.json``, refusing what fairseq's models cannot compute.

    Raises MuppetError, which names ``path``.
    """
    model_type = content.get("model_type")
    if model_type not in LAYOUTS:
        raise MuppetError(f"{path} says model_type {str(model_type)[:60]!r}; only {', '.join(LAYOUTS)} can be imported")
    layout = LAYOUTS[model_type]
    pad = {"pad_token_id": 0 if model_type == "bert" else 1}
    values = {**pad, **layout.defaults, **{name: value for name, value in content.items() if value is not None}}
    names = [field.name for field in fields(layout) if field.name != "model_type"]
    missing = [name for name in names if name not in values]
    if missing:
        raise MuppetError(f"{path} lacks {', '.join(missing)}; save the model again with save_pretrained")
    kinds = {field.name: field.type for field in fields(layout)}
    for name in names:
        value = values[name]
        is_sane = {
            "int": isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_SIZE,
            "float": isinstance(value, int | float) and 0 <= value <= 1,
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }[str(kinds[name])]
        if not is_sane:
            raise MuppetError(
                f"{path} says {name} {repr(value)[:60]}, which is no value it can have; save the model again "
                "with save_pretrained"
            )
        if name.endswith("layers") and value > _MOST_LAYERS:
            raise MuppetError(f"{path} says {value} layers; at most {_MOST_LAYERS} can be imported")
    for name, value in layout.wanted.items():
        if values.get(name, value) != value:
            raise MuppetError(f"{path} says {name} {values[name]!r}; only {value!r} can be imported")
    activation = "hidden_act" if "hidden_act" in names else "activation_function"
    if values[activation] not in ACTIVATIONS:
        raise MuppetError(
            f"{path} says {activation} {values[activation]!r}; only {', '.join(ACTIVATIONS)} can be imported"
        )
    return layout(model_type=model_type, **{name: values[name] for name in names})


def _require(options: Namespace, **wanted: Any) -> None:
    """Refuse a fairseq model that its layout cannot describe."""
    for name, value in wanted.items():
        if getattr(options, name, value) != value:
            option = f"--{name.replace('_', '-')}"
            raise MuppetError(
                f"the checkpoint was trained with {option} ({getattr(options, name)!r}), which no model of "
                "transformers has; it cannot be exported"
            )


def _their_activation(options: Namespace) -> str:
    if options.activation_fn not in _THEIR_ACTIVATIONS:
        raise MuppetError(
            f"the checkpoint was trained with --activation-fn {options.activation_fn}; only "
            f"{', '.join(_THEIR_ACTIVATIONS)} can be exported"
        )
    return _THEIR_ACTIVATIONS[options.activation_fn]


def _count_layers(state: Mapping[str, Tensor], side: str) -> int:
    place = re.compile(rf"{re.escape(side)}\.layers\.(\d+)\.")
    return len({match[1] for name in state if (match := place.match(name))})


def _permuted(words: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of an embedding in another order; the mean of all where there is none (-1)."""
    chosen = words[rows]
    lacking = [index for index, row in enumerate(rows) if row < 0]
    if lacking:
        chosen[lacking] = words.mean(dim=0)
    return chosen


def _shifted(positions: Tensor, by: int) -> Tensor:
    """A table of positions that begins ``by`` rows further down: what is new is zero, and is never read."""
    return positions[-by:] if by < 0 else torch.cat([positions.new_zeros(by, positions.shape[1]), positions])
