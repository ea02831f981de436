"""Small trained models, made once a session: what evaluation, release and the hub are tested with."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data.indexed_dataset import MMapIndexedDataset

from muppet_fairseq.data.binarized import stream_path
from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.release import release
from preprocess.binarize import binarize
from preprocess.convert import Examples, Split, convert
from preprocess.download import Fetch, PackageFile
from preprocess.entry import Entry, HeldOut
from tests.toy_data import write_wheel
from tests.toy_suite import BART_NAMES, NAMES, WORDS, options, trained

ARCHITECTURES = ("bart", "roberta")
SUITES = {"bart": (*BART_NAMES, "counts"), "roberta": (*NAMES, "counts")}
#: what the last validation of the BART generated with, and the options of ``muppet evaluate`` for the same
SEARCH = {"beam": 3, "max_len_b": 8}
SEARCH_OPTIONS = ("--beam", "3", "--max-len-b", "8")


@dataclass(frozen=True)
class ToyModels:
    """A pre-finetuned ``bart`` and ``roberta``, by these names.

    Attributes:
        home: folder of the runs and of their ``data``, a data-bin; nothing released may name it.
        runs: the runs' folders.
        releases: what ``muppet release`` made of their last checkpoints.
    """

    home: Path
    data: Path
    runs: dict[str, Path]
    releases: dict[str, Path]

    def checkpoint(self, name: str) -> Path:
        return self.runs[name] / "checkpoint_last.pt"


@cache
def toy_models(data: Path) -> ToyModels:
    """Train and release the models on a copy of the toy data-bin. The RoBERTa has spectrally normalised heads."""
    home = data.parent / "home-of-the-maker"
    own = Path(shutil.copytree(data, home / "data-bin"))
    common = ("--lr", "0.003", "--log-interval", "1000", "--max-epoch", "4", "--validate-interval", "4")
    search = ("--eval-rouge", "--eval-rouge-args", json.dumps(SEARCH))
    # sizes and settings that are not the architecture's
    odd = (
        "--spectral-norm-heads",
        "--encoder-ffn-embed-dim",
        "96",
        "--layer-norm-eps",
        "0.001",
        "--pooler-dropout",
        "0.1",
    )
    more = {"bart": search, "roberta": odd}
    runs, releases = {}, {}
    for name in ARCHITECTURES:
        runs[name] = home / f"run-{name}"
        arch = ("--arch", f"muppet_{name}_tiny")
        trained(options(own, runs[name], *arch, *common, *more[name], suite=",".join(SUITES[name])))
        releases[name] = data.parent / "released" / f"toy-{name}"
        release(runs[name] / "checkpoint_last.pt", releases[name])
    return ToyModels(home, own, runs, releases)


def raw_examples(data: Path, name: str, split: str = "valid") -> list[dict[str, Any]]:
    """The examples of a split, as preprocessing read them."""
    stream = MMapIndexedDataset(str(stream_path(data / name, "raw", split)))
    return [json.loads(stream[i].numpy().astype(np.uint8).tobytes()) for i in range(len(stream))]


def new_data_bin(data: Path, out: Path) -> Path:
    """An empty data-bin with the tokenizer of ``data``."""
    out.mkdir(parents=True)
    shutil.copyfile(data / "dict.txt", out / "dict.txt")
    shutil.copytree(data / "tokenizer", out / "tokenizer")
    return out


def add_dataset(out: Path, entry: Entry, **splits: list[dict[str, Any]]) -> None:
    """Binarise examples, which get the id ``<split>-<number>``, into a data-bin."""
    numbered = {
        name: Split([Examples([{"id": f"{name}-{i}", **example} for i, example in enumerate(examples)])])
        for name, examples in splits.items()
    }
    binarize(entry, numbered, Tokenizer.load(out / "tokenizer"), out)


def entry(
    name: str, family: str, metric: str, labels: tuple[str, ...] = (), fields: dict[str, Any] | None = None
) -> Entry:
    return Entry(
        name=name,
        family=family,
        source=PackageFile("toy==1.0", "0" * 64, ("toy.jsonl",)),
        fields=fields or {"inputs": ["first", "second"]},
        splits=HeldOut(0.25),
        labels=labels,
        metric=metric,
        licence="CC-Toy 4.0",
        citation="Toy et al. 2020",
    )


def words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.choices(WORDS, k=rng.randint(low, high))


def long_data_bin(data: Path, out: Path) -> Path:
    """Datasets of the names and kinds of the toy suite, whose texts are longer than the models (32 tokens)."""
    new_data_bin(data, out)
    rng = random.Random("long")

    def text(low: int = 20, high: int = 70) -> str:
        return " ".join(words(rng, low, high))

    labels = [rng.choice(("same", "other", "none")) for _ in range(8)]
    add_dataset(
        out,
        entry("animals", "classification", "f1", ("0", "1"), {"inputs": ["text"]}),
        valid=[{"inputs": [text()], "label": "01"[i % 2]} for i in range(8)],
    )
    add_dataset(
        out,
        entry("pairs", "classification", "accuracy", ("same", "other", "none")),
        valid=[{"inputs": [text(1), text(1)], "label": label} for label in labels],
    )
    choices = [[text(1, 40) for _ in range(2 + i % 3)] for i in range(8)]
    add_dataset(
        out,
        entry("choices", "commonsense", "accuracy"),
        valid=[{"context": text(), "choices": texts, "answer": 1} for texts in choices],
    )
    passages = [" ".join([text(), "who is dog", text()]) for _ in range(8)]
    add_dataset(
        out,
        entry("spans", "mrc", "squad"),
        valid=[
            {"question": text(1, 30), "passage": p, "answers": [{"text": "dog", "start": p.index("dog")}]}
            for p in passages
        ],
    )
    add_dataset(
        out,
        entry("summaries", "summarization", "rouge1"),
        valid=[{"source": text(), "target": text(2, 5)} for _ in range(8)],
    )
    add_dataset(
        out,
        entry("counts", "regression", "pearson", fields={"inputs": ["text"]}),
        valid=[{"inputs": [text()], "label": float(i)} for i in range(8)],
    )
    return out


def record_example(rng: random.Random) -> dict[str, Any]:
    """A passage of words, some neighbours of which are entities; one of them, which may stand twice, is the answer."""
    passage = words(rng, 12, 90)
    starts = np.cumsum([0] + [len(word) + 1 for word in passage]).tolist()
    spans = []
    for _ in range(rng.randint(3, 8)):
        first = rng.randrange(len(passage))
        text = " ".join(passage[first : first + rng.choice((1, 1, 2, 3))])
        spans.append({"text": text, "start": starts[first]})
    return {"question": "who is", "passage": " ".join(passage), "answers": spans[:1], "entities": spans}


@cache
def record_data_bin(data: Path) -> Path:
    """A data-bin of the ReCoRD-like dataset ``entities``."""
    out = new_data_bin(data, data.parent / "record" / "data-bin")
    rng = random.Random(3)
    examples = {
        split: [record_example(rng) for _ in range(count)] for split, count in {"train": 20, "valid": 30}.items()
    }
    add_dataset(out, entry("entities", "mrc", "record"), **examples)
    return out


def multirc_rows(rng: random.Random, questions: int, kind: str) -> list[dict[str, Any]]:
    """Two to four answers a question, right where they begin as the passage does; the questions' rows are mixed up."""
    rows = []
    for number in range(questions):
        passage = " ".join(words(rng, 3, 6))
        for answer in rng.sample(WORDS, rng.randint(2, 4)):
            answer = passage.split()[0] if rng.random() < 0.5 else answer
            label = str(int(answer == passage.split()[0]))
            rows.append({"passage": passage, "answer": answer, "label": label, "idx": f"{kind}{number}"})
    rng.shuffle(rows)
    return rows


def maybe_example(rng: random.Random, most: int) -> dict[str, Any]:
    """Answerable if the passage, of at most so many words, says who is."""
    passage = words(rng, 5, most)
    place = rng.randrange(len(passage))
    if rng.random() < 0.5:
        return {"question": "who is", "passage": " ".join(passage), "answers": []}
    passage[place:place] = ["who", "is"]
    start = len(" ".join(passage[: place + 2])) + 1
    return {
        "question": "who is",
        "passage": " ".join(passage),
        "answers": [{"text": passage[place + 2], "start": start}],
    }


@cache
def fine_tuned(data: Path) -> tuple[Path, Path]:
    """A data-bin of ``answers`` (MultiRC, from a source), ``maybe`` (SQuAD 2), ``entities``, ``spans``; a run on them.

    The run starts from the released BART, of whose heads it re-uses the one that fits.
    """
    folder = data.parent / "superglue"
    out = Path(shutil.copytree(record_data_bin(data), folder / "data-bin"))
    shutil.copytree(data / "spans", out / "spans")
    rng = random.Random(8)
    rows = {
        f"toy/{split}.jsonl": multirc_rows(rng, count, split) for split, count in {"train": 40, "valid": 12}.items()
    }
    source = write_wheel(folder / "raw", rows)
    fields = {"inputs": ["passage", "answer"], "label": "label", "question": "idx"}
    told = entry("answers", "classification", "multirc", ("0", "1"), fields)
    told = replace(
        told, source=replace(source, paths=("toy/{split}.jsonl",)), splits={"train": "train", "valid": "valid"}
    )
    binarize(told, convert(told, Fetch(folder / "raw", folder / "raw"), 0.0), Tokenizer.load(out / "tokenizer"), out)
    examples = {"train": [maybe_example(rng, 40) for _ in range(60)]}
    examples["valid"] = [maybe_example(rng, 90) for _ in range(60)]
    for example in examples["valid"][:4]:  # answered elsewhere than anyone would look
        example["answers"] = [{"text": example["passage"].split()[0], "start": 0}]
    add_dataset(out, entry("maybe", "mrc", "squad_v2"), **examples)
    start = ("--finetune-from-model", str(toy_models(data).releases["bart"] / "model.pt"), "--reuse-heads")
    more = ("--arch", "muppet_bart_tiny", "--lr", "0.002", "--max-epoch", "3", "--validate-interval", "3")
    trained(options(out, folder / "run", *start, *more, "--dropout", "0", suite="answers,maybe,entities,spans"))
    return out, folder / "run"
