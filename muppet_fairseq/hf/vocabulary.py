"""Read a tokenizer in Hugging Face layout as fairseq stores one: a dictionary and the tokenizer's own files.

BERT's WordPiece keeps its ``tokenizer.json``; RoBERTa's byte-level BPE becomes ``encoder.json`` and
``vocab.bpe``, as fairseq's own RoBERTa and BART use them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import read_up_to

#: model type -> the tokens that fairseq calls ``<s> <pad> </s> <unk>``, in the order of its dictionaries
SPECIAL_TOKENS = {
    "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
}
MASK_TOKENS = {"bert": "[MASK]", "roberta": "<mask>"}
#: bytes; the tokenizer.json of a vocabulary of 250,000 has some 20 MB
_LARGEST = 1 << 28
#: index of ``<pad>`` in every fairseq dictionary
FAIRSEQ_PAD = SPECIAL_TOKENS["roberta"].index("<pad>")
GPT2_FILES = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as fairseq stores it.

    ``symbols`` are the dictionary's without the special ones and ``<mask>``; ``rows[i]`` is the Hugging Face
    id of the token at index ``i`` of fairseq's dictionary, special tokens and mask included; ``files`` are
    the tokenizer's files by name.
    """

    tokenizer_type: str
    symbols: list[str]
    rows: list[int]
    files: dict[str, bytes]

    def dictionary(self) -> bytes:
        """Return ``dict.txt``. Hugging Face keeps no frequencies, so every count is 1."""
        return "".join(f"{symbol} 1\n" for symbol in self.symbols).encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; what is no such file is a :class:`MuppetError`."""
    try:
        content = json.loads(read_up_to(path, _LARGEST).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise MuppetError(f"{path} is not JSON ({error}); fetch or save it again") from None
    if not isinstance(content, dict):
        raise MuppetError(f"{path} holds no JSON object; fetch or save it again")
    return content


def read_vocabulary(source: Path, model_type: str, vocab_size: int, pad_token_id: int) -> Vocabulary:
    """Read the tokenizer in the folder ``source`` and order its tokens as fairseq's dictionary does.

    Args:
        source: holds ``tokenizer.json``, or for roberta ``vocab.json`` and ``merges.txt``.
        model_type: ``bert`` or ``roberta``.
        vocab_size, pad_token_id: what the model's configuration says.

    Raises:
        MuppetError: the tokenizer is missing, of another kind, or not the model's.
    """
    read = _read_wordpiece if model_type == "bert" else _read_byte_level_bpe
    path, ids, symbol_of, files = read(source)
    special, mask = SPECIAL_TOKENS[model_type], MASK_TOKENS[model_type]
    fault = None
    if missing := [token for token in (*special, mask) if token not in ids]:
        fault = f"has no token {' '.join(missing)}"
    elif sorted(ids.values()) != list(range(vocab_size)):
        fault = f"has {len(ids)} tokens with ids up to {max(ids.values())}, but config.json says {vocab_size}"
    elif ids[special[FAIRSEQ_PAD]] != pad_token_id:
        fault = f"pads with token {ids[special[FAIRSEQ_PAD]]}, but config.json says {pad_token_id}"
    if fault is not None:
        raise MuppetError(f"{path} {fault}; use the tokenizer that belongs to the model")
    ordinary = [token for token in sorted(ids, key=ids.__getitem__) if token not in {*special, mask}]
    symbols = [symbol_of.get(token, token) for token in ordinary]
    _check_symbols(path, symbols)
    rows = [ids[token] for token in (*special, *ordinary, mask)]
    return Vocabulary("bert" if model_type == "bert" else "gpt2", symbols, rows, files)


def _check_symbols(path: Path, symbols: list[str]) -> None:
    """Refuse what fairseq could not read back from ``dict.txt``."""
    seen = {*SPECIAL_TOKENS["roberta"], MASK_TOKENS["roberta"]}
    for symbol in symbols:
        if symbol in seen or "\n" in symbol or "\r" in symbol:
            raise MuppetError(
                f"{path} has a token that a fairseq dictionary cannot hold ({symbol!r}, twice, reserved or "
                f"with a line break); this tokenizer cannot be imported"
            )
        seen.add(symbol)


#: what names the tokens (for errors), token -> id, token -> symbol where they differ, files to write
_Tokenizer = tuple[Path, dict[str, int], dict[str, str], dict[str, bytes]]


def _read_wordpiece(source: Path) -> _Tokenizer:
    path = source / "tokenizer.json"
    if not path.is_file():
        raise MuppetError(
            f"{source} has no tokenizer.json; write it with transformers' AutoTokenizer and save_pretrained"
        )
    model, ids = _tokenizer_json(path, "WordPiece")
    if model.get("unk_token") != "[UNK]":
        raise MuppetError(f"{path} says unk_token {model.get('unk_token')!r}; only '[UNK]' can be imported")
    return path, ids, {}, {"tokenizer.json": path.read_bytes()}


def _read_byte_level_bpe(source: Path) -> _Tokenizer:
    """Read RoBERTa's tokenizer and give its pieces GPT-2's numbers, which fairseq's dictionary is made of.

    Hugging Face's ids are the dictionary's; GPT-2's own numbers are not stored but follow from the merges:
    first the 256 bytes (:func:`_byte_symbols`), then one number a merge, then ``<|endoftext|>``.
    """
    path = source / "tokenizer.json"
    if path.is_file():
        content = read_json(path)
        pre_tokenizer = content.get("pre_tokenizer") or {}
        if (
            pre_tokenizer.get("type") != "ByteLevel"
            or pre_tokenizer.get("add_prefix_space")
            or content.get("normalizer") is not None
        ):
            raise MuppetError(
                f"{path} does not split text as RoBERTa's does (byte level, no prefix space, no normalizer); "
                f"this tokenizer cannot be imported"
            )
        model, ids = _tokenizer_json(path, "BPE")
        merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    else:
        missing = [name for name in GPT2_FILES if not (source / name).is_file()]
        if missing:
            raise MuppetError(
                f"{source} has neither tokenizer.json nor {' and '.join(missing)}; save the tokenizer there "
                f"with save_pretrained"
            )
        path = source / GPT2_FILES[0]
        ids = read_json(path)
        lines = (source / GPT2_FILES[1]).read_text(encoding="utf-8").split("\n")
        merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    numbers = {symbol: number for number, symbol in enumerate(_byte_symbols())}
    for first, second in merges:
        numbers.setdefault(first + second, len(numbers))
    if "<|endoftext|>" in ids:
        numbers.setdefault("<|endoftext|>", len(numbers))
    files = {
        "encoder.json": json.dumps(numbers).encode(),
        # fairseq's reader drops the first line and what follows the last line break
        "vocab.bpe": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode(),
    }
    return path, ids, {token: str(number) for token, number in numbers.items()}, files


def _tokenizer_json(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the ``model`` part of a ``tokenizer.json`` and all its tokens, added ones included."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != kind or not isinstance(model.get("vocab"), dict):
        raise MuppetError(
            f"{path} is no {kind} tokenizer, which the model_type in config.json asks for; "
            f"use the tokenizer that belongs to the model"
        )
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    return model, model["vocab"] | added


def _byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes in GPT-2's vocabulary, in its order.

    Bytes that print as themselves in Latin-1 come first; the others get the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(0x100 - len(printable))]
