"""A tokenizer folder in Hugging Face layout, so that ``transformers.AutoTokenizer`` gives the rows that we train on.

The rows are those of :meth:`muppet_fairseq.families.base.FamilyDataset.join`, for BERT's vocabularies, too:
``<s> a </s>`` and ``<s> a </s> </s> b </s>`` without segments, cut from the end of the longer part. A text that spells
a special token is read as text (``split_special_tokens``). What differs:

* an imported Unigram model that lists its special tokens among its pieces finds them in texts, here and there;
* a ``sentencepiece`` model that lacks one of the characters of ``</s>``, say, finds it there, but not here;
* text is normalised for such a model by grapheme there, by character here: odd combinations may differ;
* of two ways to cut a text that are as good as each other sentencepiece, which adds up in single precision, may take
  the other one;
* decoding here strips white space at the ends, and writes a ``sentencepiece`` model's ``<unk>`` as ``⁇``, where
  Hugging Face leaves it out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.data.tokenizer_types import BLANK, SentencePiece, read_backend, read_merges
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hf.vocabulary import FAIRSEQ_SYMBOLS, MASK_TOKENS, SPECIAL_TOKENS, read_json

#: tokenizer folder's type -> the model type whose tokenizer it is
MODEL_TYPES = {"bert": "bert", "gpt2": "roberta", "sentencepiece": "xlm-roberta", "unigram": "xlm-roberta"}
#: the score (a log probability) of a piece that no text may become: any other way to write it is better
_NEVER = -10_000.0


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer as ``transformers`` reads one.

    ``model_type`` names the model that it belongs to. ``ids``: the Hugging Face id of each dictionary index, int64
    ``[len(dictionary)]``, a permutation; of an imported vocabulary the ids that it came with. ``backend`` encodes and
    decodes, with ``tokens`` for fairseq's ``<s> <pad> </s> <unk> <mask>``, whose ids are ``bos``, ``pad`` and so on.
    """

    model_type: str
    ids: np.ndarray
    tokens: tuple[str, ...]
    backend: tokenizers.Tokenizer
    bos: int
    pad: int
    eos: int
    unk: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> HuggingFaceTokenizer:
        """Make it of a tokenizer folder.

        Raises:
            MuppetError: Hugging Face's layout cannot hold this tokenizer, or a file of it is damaged.
        """
        if tokenizer.type not in MODEL_TYPES:
            raise MuppetError(
                f"tokenizer folder {tokenizer.folder} is of type {tokenizer.type!r}, which has no counterpart in "
                f"Hugging Face layout; use a model with a tokenizer of type {', '.join(MODEL_TYPES)}"
            )
        model_type = MODEL_TYPES[tokenizer.type]
        tokens = (*SPECIAL_TOKENS[model_type], MASK_TOKENS[model_type])
        try:
            ids, backend = _READERS[tokenizer.type](tokenizer, tokens)
        except MuppetError:
            raise
        except Exception as error:  # the library raises what it likes for a damaged file
            reason = " ".join(str(error).split())
            raise MuppetError(f"tokenizer folder {tokenizer.folder} is damaged ({reason}); make it again") from None
        bos, pad, eos, unk, mask = (int(ids[tokenizer.dictionary.index(symbol)]) for symbol in FAIRSEQ_SYMBOLS)
        backend.add_special_tokens(list(tokens))
        backend.encode_special_tokens = True
        # RoBERTa's rows for all; of the offsets it takes off the blank that GPT-2's tokens begin with
        backend.post_processor = processors.RobertaProcessing(
            (tokens[2], eos), (tokens[0], bos), trim_offsets=tokenizer.type == "gpt2", add_prefix_space=False
        )
        return cls(model_type, ids, tokens, backend, bos, pad, eos, unk, mask)

    def files(self, max_positions: int) -> dict[str, bytes]:
        """Return what ``AutoTokenizer`` reads, name to content.

        Args:
            max_positions: the longest row, special tokens included, that ``truncation=True`` leaves.
        """
        bos, pad, eos, unk, mask = self.tokens
        config = {
            # takes tokenizer.json as it is, beside whatever model
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_positions,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "bos_token": bos,
            "cls_token": bos,
            "pad_token": pad,
            "eos_token": eos,
            "sep_token": eos,
            "unk_token": unk,
            "mask_token": mask,
        }
        return {
            "tokenizer.json": self.backend.to_str().encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        }


#: the id of each dictionary index, and what encodes and decodes
_Read = tuple[np.ndarray, tokenizers.Tokenizer]


def _tokenizer_json(tokenizer: Tokenizer, tokens: tuple[str, ...]) -> _Read:
    """Keep the ids of ``tokenizer.json``; symbols that it lacks, of rows without a token, get those between."""
    path, symbols = tokenizer.folder / "tokenizer.json", tokenizer.dictionary.symbols
    backend = read_backend(tokenizer.folder)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    token_of = dict(zip(FAIRSEQ_SYMBOLS, tokens, strict=True))
    known = [token_of.get(symbol, symbol) for symbol in symbols]
    if missing := [token for token in tokens if token not in vocabulary]:
        raise MuppetError(f"{path} has no token {' '.join(missing)}; use a tokenizer.json with special tokens")
    _check_complete(tokenizer, "tokenizer.json", vocabulary.keys() - known)
    between = iter(sorted(set(range(len(symbols))) - set(vocabulary.values())))
    ids = np.array([vocabulary[token] if token in vocabulary else next(between, -1) for token in known])
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise MuppetError(
            f"{path} has ids that are not those of the {len(ids)} rows of a model; import it with its model"
        )
    return ids, backend


def _recorded_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids by the ``ids`` of the special tokens in ``config.json``; without it, the dictionary's own order."""
    path, dictionary = tokenizer.folder / "config.json", tokenizer.dictionary
    order = np.arange(len(dictionary))
    places = read_json(path).get("ids")
    if places is None:
        return order
    if (
        not isinstance(places, dict)
        or places.keys() != set(FAIRSEQ_SYMBOLS)
        or not all(type(place) is int and 0 <= place < len(order) for place in places.values())
        or len(set(places.values())) < len(places)
    ):
        raise MuppetError(
            f"{path} must give each of {' '.join(FAIRSEQ_SYMBOLS)} an id of its own below {len(order)} under 'ids'; "
            f"import the model again"
        )
    ids = np.empty_like(order)
    special = [dictionary.index(symbol) for symbol in places]
    ids[special] = list(places.values())
    ids[np.delete(order, special)] = np.setdiff1d(order, ids[special])
    return ids


def _byte_level_bpe(tokenizer: Tokenizer, _: tuple[str, ...]) -> _Read:
    folder, symbols, ids = tokenizer.folder, tokenizer.dictionary.symbols, _recorded_ids(tokenizer)
    token_of = {str(number): token for token, number in read_json(folder / "encoder.json").items()}
    vocabulary = {token_of.get(symbol, symbol): number for symbol, number in zip(symbols, ids.tolist(), strict=True)}
    merges = [(first, second) for first, second in read_merges(folder)]
    # a byte that the dictionary lacks becomes <unk>, as here; a piece has no place in a vocabulary without an id
    pieces = {piece for first, second in merges for piece in (first, second, first + second)}
    _check_complete(tokenizer, "vocab.bpe", pieces - vocabulary.keys())
    if len(vocabulary) < len(symbols):
        raise MuppetError(
            f"tokenizer folder {folder}: dict.txt has tokens of encoder.json by number and by name; import it again"
        )
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return ids, backend


def _sentencepiece(tokenizer: Tokenizer, _: tuple[str, ...]) -> _Read:
    """Make sentencepiece's Unigram model of the pieces in the order of the dictionary."""
    name = SentencePiece.files[0]
    model = _SentencePieceModel.read(tokenizer.folder / name)
    symbols = tokenizer.dictionary.symbols
    _check_complete(tokenizer, name, model.scores.keys() - set(symbols))
    vocabulary = [(symbol, model.scores.get(symbol, _NEVER)) for symbol in symbols]
    backend = tokenizers.Tokenizer(
        models.Unigram(vocabulary, tokenizer.dictionary.unk(), byte_fallback=model.byte_fallback)
    )
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.removes_blanks:
        steps += [
            normalizers.Replace(tokenizers.Regex("^ +| +$"), ""),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    if model.begins_with_blank:
        steps.append(normalizers.Prepend(" "))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    splits: list[pre_tokenizers.PreTokenizer] = []
    if not model.byte_fallback:
        # ``Dictionary.encode_line`` drops white space that the model does not know, in Python's sense of it
        splits.append(pre_tokenizers.Split(tokenizers.Regex(r"[\s\x1c-\x1f]"), "removed"))
    if not any(BLANK in piece[1:] for piece in model.scores):
        # word by word, which is faster
        splits.append(pre_tokenizers.Split(BLANK, "merged_with_next"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return np.arange(len(symbols)), backend


#: tokenizer folder's type -> what reads it, given the special tokens
_READERS: dict[str, Callable[[Tokenizer, tuple[str, ...]], _Read]] = {
    "bert": _tokenizer_json,
    "gpt2": _byte_level_bpe,
    "sentencepiece": _sentencepiece,
    "unigram": _tokenizer_json,
}


def _check_complete(tokenizer: Tokenizer, name: str, missing: set[str]) -> None:
    """Refuse a vocabulary with tokens that have no index: they are ``<unk>`` here, but cannot be so there."""
    if missing:
        raise MuppetError(
            f"tokenizer folder {tokenizer.folder}: dict.txt lacks {len(missing)} tokens of {name} ({min(missing)!r}, "
            f"say), which Hugging Face layout cannot take for <unk>; use a model whose dictionary has them all"
        )


@dataclass(frozen=True)
class _SentencePieceModel:
    """What is needed of a sentencepiece model; numbers and defaults are those of ``sentencepiece_model.proto``.

    ``scores`` are those of the pieces that a text can become; a byte comes only where there is no piece.
    """

    scores: dict[str, float]
    charsmap: bytes
    begins_with_blank: bool
    removes_blanks: bool
    byte_fallback: bool

    @classmethod
    def read(cls, path: Path) -> _SentencePieceModel:
        """Read a model that sentencepiece has read before. Raises MuppetError for a kind without counterpart."""
        fields = list(_fields(path.read_bytes()))
        pieces = [{1: b"", 2: 0.0, 3: 1} | dict(_fields(value)) for number, value in fields if number == 1]
        trainer, normalizer = (
            {key: value for part, message in fields if part == wanted for key, value in _fields(message)}
            for wanted in (2, 3)
        )
        unsupported = {
            "is no Unigram model": trainer.get(3, 1) != 1,
            "has pieces that end in a blank": trainer.get(24, 0),
            "keeps blanks as they are": not normalizer.get(5, 1),
            "has pieces that a user defined": any(piece[3] == 4 for piece in pieces),
        }
        for reason, holds in unsupported.items():
            if holds:
                raise MuppetError(f"{path} {reason}, which Hugging Face layout cannot hold; use a model without")
        return cls(
            scores={piece[1].decode(): piece[2] if piece[3] == 1 else _NEVER for piece in pieces if piece[3] in (1, 6)},
            charsmap=normalizer.get(2, b""),
            begins_with_blank=bool(normalizer.get(3, 1)),
            removes_blanks=bool(normalizer.get(4, 1)),
            byte_fallback=bool(trainer.get(35, 0)),
        )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number and value (an int, a float, or bytes for all else).

    ``sentencepiece`` brings a module for its messages, but that runs only with the newest ``protobuf``.
    """
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value = message[place : place + size]
            place += size
            yield number, struct.unpack("<f", value)[0] if kind == 5 else value
