"""Read a tokenizer in Hugging Face layout as fairseq stores one: a dictionary and the tokenizer's own files.

A ``tokenizer.json`` of WordPiece (BERT) or Unigram (XLM-R) stays as it is, and so does XLM-R's
``sentencepiece.bpe.model``; the byte-level BPE of RoBERTa and BART becomes ``encoder.json`` and ``vocab.bpe``, as
fairseq's own RoBERTa and BART use them. :mod:`muppet_fairseq.hf.tokenizer` goes the other way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muppet_fairseq.data.tokenizer_types import read_sentencepiece
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import read_up_to

_FAIRSEQ_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
#: model type -> the tokens that fairseq calls ``<s> <pad> </s> <unk>``, in the order of its dictionaries
SPECIAL_TOKENS = {
    "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),
    "roberta": _FAIRSEQ_TOKENS,
    "xlm-roberta": _FAIRSEQ_TOKENS,
    "bart": _FAIRSEQ_TOKENS,
}
MASK_TOKENS = {"bert": "[MASK]", "roberta": "<mask>", "xlm-roberta": "<mask>", "bart": "<mask>"}
#: fairseq's names of the special tokens and the mask
FAIRSEQ_SYMBOLS = (*_FAIRSEQ_TOKENS, "<mask>")
#: bytes; the tokenizer.json of a vocabulary of 250,000 has some 20 MB
_LARGEST = 1 << 28
#: index of ``<pad>`` in every fairseq dictionary
FAIRSEQ_PAD = _FAIRSEQ_TOKENS.index("<pad>")
GPT2_FILES = ("vocab.json", "merges.txt")
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
#: rows without a token: a table is padded to a multiple of 128 at most
_MOST_FILLERS = 127


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as fairseq stores it.

    ``symbols`` are the dictionary's without the special ones and ``<mask>``; a row that no token uses has one like
    fairseq's own, ``madeupword0000``. ``rows[i]`` is the Hugging Face id of the token at index ``i`` of fairseq's
    dictionary, special tokens and mask included, or -1 for a mask that has no row (bart-large-cnn's). ``files`` are
    the tokenizer's files by name.
    """

    tokenizer_type: str
    symbols: list[str]
    rows: list[int]
    files: dict[str, bytes]
    #: the tokenizer folder's ``config.json``; of gpt2, whose files do not tell, it has the special tokens' ids
    config: dict[str, Any]

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
        source: holds ``tokenizer.json``, or for roberta and bart ``vocab.json`` and ``merges.txt``, or for xlm-roberta
            ``sentencepiece.bpe.model``.
        model_type: a key of :data:`SPECIAL_TOKENS`.
        vocab_size, pad_token_id: what the model's configuration says. A few rows may have no token; of bart, the mask
            may have no row.

    Raises:
        MuppetError: the tokenizer is missing, of another kind, or not the model's.
    """
    tokenizer_type, path, ids, symbol_of, files = _READERS[model_type](source)
    for token, number in ids.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise MuppetError(f"{path} gives token {repr(token)[:60]} the id {repr(number)[:60]}; fetch it again")
    special, mask = SPECIAL_TOKENS[model_type], MASK_TOKENS[model_type]
    if missing := [token for token in (*special, mask) if token not in ids]:
        raise MuppetError(f"{path} has no token {' '.join(missing)}; use the tokenizer that belongs to the model")
    has_mask_row = model_type != "bart" or ids[mask] != vocab_size
    used = {number for token, number in ids.items() if has_mask_row or token != mask}
    fault = None
    if len(set(ids.values())) < len(ids) or max(used) >= vocab_size or vocab_size - len(used) > _MOST_FILLERS:
        fault = f"has {len(ids)} tokens with ids up to {max(ids.values())}, but config.json says {vocab_size}"
    elif ids[special[FAIRSEQ_PAD]] != pad_token_id:
        fault = f"pads with token {ids[special[FAIRSEQ_PAD]]}, but config.json says {pad_token_id}"
    if fault is not None:
        raise MuppetError(f"{path} {fault}; use the tokenizer that belongs to the model")
    names = (name for n in itertools.count() if (name := f"madeupword{n:04d}") not in ids)
    symbol_at = dict(zip(sorted(set(range(vocab_size)) - used), names, strict=False))
    symbol_at |= {n: symbol_of.get(token, token) for token, n in ids.items() if token not in {*special, mask}}
    ordinary = sorted(symbol_at)
    symbols = [symbol_at[number] for number in ordinary]
    _check_symbols(path, symbols)
    rows = [*(ids[token] for token in special), *ordinary, ids[mask] if has_mask_row else -1]
    config: dict[str, Any] = {"type": tokenizer_type}
    if tokenizer_type == "gpt2":
        config["ids"] = dict(zip(FAIRSEQ_SYMBOLS, (ids[token] for token in (*special, mask)), strict=True))
    return Vocabulary(tokenizer_type, symbols, rows, files, config)


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


#: type, what names the tokens (for errors), token -> id, token -> symbol where they differ, files to write
_Tokenizer = tuple[str, Path, dict[str, int], dict[str, str], dict[str, bytes]]


def _read_wordpiece(source: Path) -> _Tokenizer:
    path = source / "tokenizer.json"
    if not path.is_file():
        raise MuppetError(
            f"{source} has no tokenizer.json; write it with transformers' AutoTokenizer and save_pretrained"
        )
    content = read_json(path)
    ids = _tokens_of(path, content, "WordPiece")
    unk = content["model"].get("unk_token")
    if unk != "[UNK]":
        raise MuppetError(f"{path} says unk_token {unk!r}; only '[UNK]' can be imported")
    return "bert", path, ids, {}, {path.name: path.read_bytes()}


def _read_xlm_roberta(source: Path) -> _Tokenizer:
    """Read XLM-R's tokenizer.

    fairseq and Hugging Face give the pieces of its sentencepiece model the same ids: the special tokens of fairseq's
    dictionaries, then the pieces after the model's own ``<unk> <s> </s>``, then ``<mask>``.
    """
    path = source / "tokenizer.json"
    if path.is_file():
        content = read_json(path)
        ids = _tokens_of(path, content, "Unigram")
        unk_id = content["model"].get("unk_id")
        if "<unk>" in ids and unk_id != ids["<unk>"]:
            raise MuppetError(f"{path} says unk_id {unk_id!r}, which is not its <unk>; this cannot be imported")
        return "unigram", path, ids, {}, {path.name: path.read_bytes()}
    path = source / SENTENCEPIECE_FILE
    if not path.is_file():
        raise MuppetError(
            f"{source} has neither tokenizer.json nor {SENTENCEPIECE_FILE}; save the tokenizer there "
            f"with save_pretrained"
        )
    try:
        processor = read_sentencepiece(source)
    except (OSError, RuntimeError) as error:
        raise MuppetError(f"{path} is damaged ({' '.join(str(error).split())}); fetch it again") from None
    pieces = [processor.IdToPiece(number) for number in range(processor.GetPieceSize())]
    if sorted(pieces[:3]) != ["</s>", "<s>", "<unk>"] or not {*FAIRSEQ_SYMBOLS}.isdisjoint(pieces[3:]):
        raise MuppetError(
            f"{path} does not begin with <unk>, <s> and </s>, or has other special pieces, unlike XLM-R's; "
            f"this tokenizer cannot be imported"
        )
    tokens = (*_FAIRSEQ_TOKENS, *pieces[3:], "<mask>")
    ids = {token: number for number, token in enumerate(tokens)}
    return "sentencepiece", path, ids, {}, {path.name: path.read_bytes()}


def _read_byte_level_bpe(source: Path) -> _Tokenizer:
    """Read RoBERTa's tokenizer and give its pieces GPT-2's numbers, which fairseq's dictionary is made of.

    Hugging Face's ids are the dictionary's; GPT-2's own numbers are not stored but follow from the merges:
    first the 256 bytes (:func:`_byte_symbols`), then one number a merge, then ``<|endoftext|>``.
    """
    path = source / "tokenizer.json"
    if path.is_file():
        content = read_json(path)
        pre_tokenizer = content.get("pre_tokenizer")
        if (
            not isinstance(pre_tokenizer, dict)
            or pre_tokenizer.get("type") != "ByteLevel"
            or pre_tokenizer.get("add_prefix_space")
            or content.get("normalizer") is not None
        ):
            raise MuppetError(
                f"{path} does not split text as RoBERTa's does (byte level, no prefix space, no normalizer); "
                f"this tokenizer cannot be imported"
            )
        ids = _tokens_of(path, content, "BPE")
        pairs = content["model"].get("merges")
        pairs = pairs if isinstance(pairs, list) else [pairs]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    else:
        missing = [name for name in GPT2_FILES if not (source / name).is_file()]
        if missing:
            raise MuppetError(
                f"{source} has neither tokenizer.json nor {' and '.join(missing)}; save the tokenizer there "
                f"with save_pretrained"
            )
        path = source / GPT2_FILES[0]
        ids = read_json(path)
        try:
            lines = read_up_to(source / GPT2_FILES[1], _LARGEST).decode().split("\n")
        except (OSError, ValueError) as error:
            raise MuppetError(f"{source / GPT2_FILES[1]} is damaged ({error}); fetch it again") from None
        merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if not all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in merges):
        raise MuppetError(f"{source} has merges that are no pairs; fetch or save the tokenizer again")
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
    return "gpt2", path, ids, {token: str(number) for token, number in numbers.items()}, files


#: model type -> what reads its tokenizer
_READERS: dict[str, Callable[[Path], _Tokenizer]] = {
    "bert": _read_wordpiece,
    "roberta": _read_byte_level_bpe,
    "xlm-roberta": _read_xlm_roberta,
    "bart": _read_byte_level_bpe,
}


def _tokens_of(path: Path, content: dict[str, Any], kind: str) -> dict[str, int]:
    """Return the id of each token of a ``tokenizer.json``, added ones included.

    Args:
        path, content: the file and what :func:`read_json` found in it.
        kind: of its model: ``WordPiece``, ``BPE`` or ``Unigram``.

    Raises:
        MuppetError: its model is of another kind, or there is none.
    """
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) and model.get("type") == kind else None
    if not isinstance(vocabulary, list if kind == "Unigram" else dict):
        raise MuppetError(
            f"{path} is no {kind} tokenizer, which the type of the model asks for; "
            f"use the tokenizer that belongs to the model"
        )
    try:
        if kind == "Unigram":
            vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
        return vocabulary | {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError) as error:
        raise MuppetError(f"{path} is damaged ({error!r}); fetch or save it again") from None


def _byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes in GPT-2's vocabulary, in its order.

    Bytes that print as themselves in Latin-1 come first; the others get the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(0x100 - len(printable))]
