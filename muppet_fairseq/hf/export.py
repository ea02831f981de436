"""Export a checkpoint in Hugging Face layout: the model, and every head as a model that transformers loads.

``muppet export-hf CKPT OUT`` writes

* ``OUT``: the encoder (or BART with its decoder, which writes texts), the tokenizer and a model card;
* ``OUT/heads/NAME`` for each head: ``config.json`` of its class, the head's own parameters, tokenizer and card. What is
  the same for all heads is one file with several names (hard links): ``model.safetensors.index.json`` says which
  parameters are in the encoder's and which in the head's.

With ``--head NAME``, ``OUT`` is that head's model alone, in one file. :mod:`muppet_fairseq.hf.layout` and
:mod:`muppet_fairseq.hf.heads` say how things are called; the tokenizer lays rows out as they were in training.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from muppet_fairseq import checkpoint_file, generation
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.files import new_folder
from muppet_fairseq.generation import GenerationOptions
from muppet_fairseq.hf import cards
from muppet_fairseq.hf.generation_config import generation_config
from muppet_fairseq.hf.heads import BEGINNINGS, MODELING_FILE, ExportedHead, export_head
from muppet_fairseq.hf.importing import RECORD
from muppet_fairseq.hf.layout import LAYOUTS, read_layout
from muppet_fairseq.hf.tokenizer import HuggingFaceTokenizer
from muppet_fairseq.hf.vocabulary import read_json
from muppet_fairseq.models.bart import MuppetBartModel
from muppet_fairseq.models.checkpoint import DICTIONARY_KEY, UNUSED_PREFIX
from muppet_fairseq.release import open_run
from muppet_fairseq.trained import TrainedModel, read_checkpoint

#: the parameters of a model in one file; else those that all heads share, and a head's own
WHOLE, SHARED, OWN = "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Exported:
    """A model in Hugging Face layout.

    Attributes:
        tokens: what a row begins with, and what each text of it ends with.
        config: of the model without a head.
        tensors: likewise, by their full names.
        texts: files by name that go with the model and with every head, as the tokenizer's.
        generation: content of ``generation_config.json``, of a model that writes texts.
        heads: by name.
    """

    tokens: tuple[str, str]
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    texts: dict[str, bytes]
    generation: dict[str, Any] | None
    heads: dict[str, ExportedHead]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``muppet export-hf``."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="checkpoint of a run, or folder made by 'muppet release' or 'muppet import-hf'",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--head", metavar="NAME", help="only the model with this head")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data-bin folder; default: the one of the run")
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="what 'muppet evaluate --json' printed of this checkpoint, for the model card; may be given several times",
    )
    generation.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Export and say what was written."""
    options = GenerationOptions.of_arguments(args)
    exported = export(args.checkpoint, args.out, args.data, args.head, args.evaluation, options)
    if args.head is not None:
        class_name = exported.heads[args.head].class_name
        print(f"exported the head {args.head} of {args.checkpoint} as {args.out}: {class_name}")
        return
    class_name = exported.config["architectures"][0]
    print(f"exported {args.checkpoint} as {args.out}: {class_name}, {len(exported.heads)} heads")
    for name, head in exported.heads.items():
        print(f"  {args.out / 'heads' / name}: {head.class_name}")


def export(
    checkpoint: Path,
    out: Path,
    data: Path | None = None,
    head: str | None = None,
    evaluations: Sequence[Path] = (),
    options: GenerationOptions | None = None,
) -> Exported:
    """Write the new folder ``out``.

    Args:
        checkpoint: file of a run, or folder of a release or an import.
        data: the data-bin, for the tokenizer (that of the run if None) and for licences and citations.
        head: the only head to be written, then as the folder itself.
        evaluations: files with what ``muppet evaluate --json`` printed.
        options: how ``generate`` writes texts by default.

    Raises:
        MuppetError: ``out`` exists, the checkpoint cannot be used, or transformers has nothing like it.
    """
    if out.exists():
        raise MuppetError(f"{out} is there already; name a new folder")
    options = GenerationOptions() if options is None else options
    scores = [row for path in evaluations for row in cards.read_evaluation(path, checkpoint)]
    if checkpoint.is_dir() and (checkpoint / RECORD).is_file():
        exported, card = _of_import(checkpoint, options), cards.Imported(out.name, read_json(checkpoint / RECORD))
    else:
        if checkpoint.is_dir():
            state = read_checkpoint(checkpoint / "model.pt")
            trained = TrainedModel.load(checkpoint / "model.pt", checkpoint / "dict.txt")
            tokenizer = Tokenizer.load(checkpoint)
        else:
            state, trained, tokenizer, data = open_run(checkpoint, data)
        exported = _of_trained(trained, tokenizer, options)
        card = cards.Trained(out.name, trained.task, state["cfg"]["model"], data, scores)
    if head is not None and head not in exported.heads:
        there = f"it has {', '.join(exported.heads)}" if exported.heads else "it has none"
        raise MuppetError(f"{checkpoint} has no head {head!r}{nearest(head, exported.heads)}; {there}")
    with new_folder(out) as folder:
        if head is not None:
            _write_head(folder, exported, head, card.of_head(head, exported), shared=None)
            return exported
        _write_model(folder, exported, card.of_model(exported))
        for name in exported.heads:
            _write_head(folder / "heads" / name, exported, name, card.of_head(name, exported), shared=folder)
    return exported


def _of_trained(trained: TrainedModel, tokenizer: Tokenizer, options: GenerationOptions) -> Exported:
    theirs = HuggingFaceTokenizer.of(tokenizer)
    writes = isinstance(trained.model, MuppetBartModel)
    model_type = "bart" if writes else theirs.model_type
    state = {name: tensor.float() for name, tensor in trained.model.state_dict().items()}
    layout = LAYOUTS[model_type].of_options(model_type, trained.model.args, state, theirs.pad)
    config = layout.config(theirs.bos, theirs.eos)
    config["architectures"] = [f"{BEGINNINGS[model_type]}{'ForConditionalGeneration' if writes else 'Model'}"]
    tensors = {f"{layout.prefix}{name}": tensor for name, tensor in layout.from_fairseq(state, theirs.ids).items()}
    heads = {
        head: export_head(spec, trained.model.heads[head].float(), model_type)
        for spec, head in zip(trained.task.specs, trained.task.heads, strict=True)
        if head is not None
    }
    return Exported(
        (theirs.tokens[0], theirs.tokens[2]),
        config,
        tensors,
        theirs.files(layout.max_positions),
        _generation(theirs, options, layout.max_positions) if writes else None,
        dict(sorted(heads.items())),
    )


def _of_import(folder: Path, options: GenerationOptions) -> Exported:
    """What ``muppet import-hf`` has read, unchanged."""
    again = f"{folder} is not what this version's 'muppet import-hf' makes; import the model again"
    config = read_json(folder / RECORD).get("config")
    if not isinstance(config, dict):
        raise MuppetError(again)
    tokenizer = Tokenizer.load(folder)
    theirs = HuggingFaceTokenizer.of(tokenizer)
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    layout = read_layout(config | {"vocab_size": len(theirs.ids)}, folder / RECORD)
    content = checkpoint_file.read(folder / "model.pt", mapped=True)
    try:
        state = dict(content["model"])
        if bytes(state[DICTIONARY_KEY].tolist()).hex() != dictionary_sha256(folder / "dict.txt"):
            raise ValueError
        own = layout.from_fairseq(state, theirs.ids)
        if any(own[name].shape != shape for name, shape in layout.shapes().items()):
            raise ValueError
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise MuppetError(again) from None
    tensors = {f"{layout.prefix}{name}": tensor for name, tensor in own.items()}
    classes = [f"{BEGINNINGS[layout.model_type]}Model"]
    if config.pop("auto_map", None) is None:  # else it had a class of its own, whose code was not imported
        classes = config.get("architectures") or classes
        others = [name for name in state if name.startswith(UNUSED_PREFIX)]
        tensors |= {name.removeprefix(UNUSED_PREFIX): state[name] for name in others}
    config |= {"vocab_size": layout.vocab_size, "architectures": classes}
    writes = layout.model_type == "bart"
    return Exported(
        (theirs.tokens[0], theirs.tokens[2]),
        config,
        tensors,
        theirs.files(layout.max_positions),
        _generation(theirs, options, layout.max_positions) if writes else None,
        {},
    )


def _generation(tokenizer: HuggingFaceTokenizer, options: GenerationOptions, max_positions: int) -> dict[str, Any]:
    return generation_config(
        options, bos=tokenizer.bos, pad=tokenizer.pad, eos=tokenizer.eos, max_positions=max_positions
    )


def _write_model(folder: Path, exported: Exported, card: str) -> None:
    """Write the model without a head."""
    _write_tensors(folder / WHOLE, exported.tensors)
    _write_json(folder / "config.json", exported.config)
    if exported.generation is not None:
        _write_json(folder / "generation_config.json", exported.generation)
    for name, content in exported.texts.items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_head(folder: Path, exported: Exported, name: str, card: str, shared: Path | None) -> None:
    """Write the model with a head; ``shared``: the folder of :func:`_write_model`, whose files it then uses."""
    head = exported.heads[name]
    folder.mkdir(parents=True, exist_ok=True)
    if shared is None:
        _write_tensors(folder / WHOLE, exported.tensors | head.tensors)
    else:
        _link(shared / WHOLE, folder / SHARED)
        _write_tensors(folder / OWN, head.tensors)
        places = dict.fromkeys(exported.tensors, SHARED) | dict.fromkeys(head.tensors, OWN)
        size = sum(tensor.nbytes for tensor in (*exported.tensors.values(), *head.tensors.values()))
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
    for file, content in exported.texts.items():
        if shared is None:
            (folder / file).write_bytes(content)
        else:
            _link(shared / file, folder / file)
    if head.needs_code:
        shutil.copyfile(Path(__file__).with_name(MODELING_FILE), folder / MODELING_FILE)
    _write_json(folder / "config.json", exported.config | head.config)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _link(file: Path, name: Path) -> None:
    """Give a file another name; where the file system has no second names, a copy."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # safetensors lets nobody else read its files
    path.touch()
    mode = path.stat().st_mode
    try:
        # the note is what transformers asks for
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # of the disk
        raise RuntimeError(str(error)) from None
    path.chmod(mode)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
