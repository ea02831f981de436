"""The types of tokenizers. Each is one class and one line of :data:`TYPES`.

A type gives the dictionary indices that fairseq's own encoder of that name and ``Dictionary.encode_line`` give,
with the characters that each token covers, for many texts at a time.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import tiktoken
import tokenizers
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

from muppet_fairseq.errors import MuppetError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

#: entries of the caches of pieces and words
CACHE = 2**17
#: a longer word (a sentence of Chinese) seldom comes again, and would fill the cache (characters)
CACHED_WORD = 32
#: longest run of white space that is read in one piece (characters)
LONG_BLANK = 2**16
#: what ``Dictionary.encode_line`` takes for one token
TOKEN = re.compile(r"\S+")
#: sentencepiece's blank
BLANK = "\u2581"
#: fastBPE's marks: the end of a word in the codes, a piece that another follows in the dictionary
END_OF_WORD, CONTINUED = "</w>", "@@"


@dataclass(frozen=True)
class Encoding:
    """The tokens of one text, special tokens not among them.

    ``ids``: dictionary indices, int32 ``[tokens]``. ``offsets``: first character and one past the last, int32
    ``[tokens, 2]``; both columns never decrease. The spaces before a word belong to no token, a token of spaces
    only covers nothing, and the tokens of one character (an emoji has four bytes) all cover that character.
    """

    ids: np.ndarray
    offsets: np.ndarray


class TokenizerType(ABC):
    """A type of tokenizer, made of the files of a folder and its dictionary.

    ``__init__(folder, dictionary)`` raises any exception for files that are damaged and MuppetError, one sentence,
    for all else. ``files``: what it reads beside ``config.json`` and ``dict.txt``.
    """

    files: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, folder: Path, dictionary: Dictionary) -> None: ...

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts, with offsets."""

    @abstractmethod
    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode texts to dictionary indices with ``</s>`` at the end, int32 ``[tokens + 1]`` each."""

    @abstractmethod
    def decode(self, indices: np.ndarray) -> str:
        """Turn dictionary indices, int ``[n]``, back into a text."""


class TokenizerJson(TokenizerType):
    """BERT's WordPiece or XLM-R's Unigram, as ``transformers`` saves them: in parallel on all cores.

    A text that spells a special token (``[SEP]``) is read as text. Only a Unigram model that lists its special tokens
    among its pieces finds them in a text all the same, here as in ``transformers``.
    """

    files = ("tokenizer.json",)

    def __init__(self, folder: Path, dictionary: Dictionary) -> None:
        self._backend = read_backend(folder)
        # only WordPiece's words have no blanks about them
        self._has_blanks = not isinstance(self._backend.model, tokenizers.models.WordPiece)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        # the dictionary index of each backend id; unk where there is none, and </s> for one more
        self._eos = max(vocabulary.values()) + 1
        self._index_of = np.full(self._eos + 1, dictionary.unk(), dtype=np.int32)
        for token, number in vocabulary.items():
            self._index_of[number] = dictionary.index(token)
        _check_dictionary(folder, int((self._index_of != dictionary.unk()).sum()), len(vocabulary))
        self._id_of = np.zeros(len(dictionary), dtype=np.intp)
        self._id_of[self._index_of[:-1]] = np.arange(self._eos)
        self._index_of[self._eos] = dictionary.eos()

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings = []
        for text, encoded in zip(texts, self._backend.encode_batch(list(texts), add_special_tokens=False), strict=True):
            offsets = np.array(encoded.offsets, dtype=np.int32).reshape(-1, 2)
            encodings.append(
                Encoding(self._ids(encoded.ids), _without_blanks(text, offsets) if self._has_blanks else offsets)
            )
        return encodings

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._ids([*encoded.ids, self._eos]) for encoded in batch]

    def decode(self, indices: np.ndarray) -> str:
        return self._backend.decode(self._id_of[indices].tolist())

    def _ids(self, ids: list[int]) -> np.ndarray:
        return self._index_of[np.array(ids, dtype=np.intp)]


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """Read ``tokenizer.json`` to encode whole texts, one by one, and to decode. Raises what the library does."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    if backend.decoder is None:
        is_wordpiece = isinstance(backend.model, tokenizers.models.WordPiece)
        backend.decoder = tokenizers.decoders.WordPiece() if is_wordpiece else tokenizers.decoders.Metaspace()
    return backend


def _without_blanks(text: str, offsets: np.ndarray) -> np.ndarray:
    """Move offsets ``[tokens, 2]`` off the blanks at both ends of the tokens; a token of blanks covers nothing."""
    places = np.arange(len(text) + 1)
    blank = np.array([*map(str.isspace, text), False])
    # the first character from each place on that is no blank, and one past the last before it
    begins = np.minimum.accumulate(np.where(blank, len(text), places)[::-1])[::-1]
    ends = np.maximum.accumulate(np.append(0, np.where(blank, 0, places + 1)[:-1]))
    first = np.minimum(begins[offsets[:, 0]], offsets[:, 1])
    return np.stack([first, np.maximum(ends[offsets[:, 1]], first)], axis=1).astype(np.int32)


class Gpt2(TokenizerType):
    """fairseq's ``--bpe gpt2``: the byte-level BPE of RoBERTa and BART, by ``tiktoken``.

    ``tiktoken`` merges any two pieces that together are a token, where fairseq merges the pairs that ``vocab.bpe``
    lists. The result is the same where every token is what its own bytes are merged to, as for a learned vocabulary.
    """

    files = ("encoder.json", "vocab.bpe")
    #: how a text is cut into words before anything is merged: as ``gpt2_bpe_utils`` of fairseq does it, in an order
    #: that is faster
    WORDS = r"'(?:[sdmt]|ll|ve|re)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"

    def __init__(self, folder: Path, dictionary: Dictionary) -> None:
        number_of = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        byte_of = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}
        merged = ["".join(pair) for pair in read_merges(folder)]
        # a token's rank is its place here: the bytes, then what the merges make, in order
        names = [*byte_of, *merged]
        tokens = [b"".join(byte_of[character] for character in name) for name in names]
        self._backend = tiktoken.Encoding(
            "gpt2",
            pat_str=self.WORDS,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )
        # fairseq's published GPT-2 dictionaries hold the ids themselves, as decimal strings
        indices = [dictionary.index(str(number_of[name])) for name in names]
        # one more: </s>
        self._index_of = np.array([*indices, dictionary.eos()], dtype=np.int32)
        _check_dictionary(folder, sum(index != dictionary.unk() for index in indices), len(names))
        self._rank_of = np.zeros(len(dictionary), dtype=np.intp)
        self._rank_of[indices] = np.arange(len(indices))
        self._bytes = np.array([len(token) for token in tokens])
        self._blanks_before = np.array([len(token) - len(token.lstrip(b" ")) for token in tokens])
        self._blanks_after = np.array([len(token) - len(token.rstrip(b" ")) for token in tokens])

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        ranks = list(map(self._ranks, texts))
        flat = _flat(ranks)
        # the tokens' bytes, one after the other, are those of the texts
        utf8 = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
        ends = np.cumsum(self._bytes[flat])
        # number of characters that begin up to and with each byte
        begun = np.cumsum((utf8 & 0xC0) != 0x80)
        last = begun[ends - 1]
        first = begun[ends - self._bytes[flat]] - 1
        first = np.minimum(first + self._blanks_before[flat], last)
        last = np.maximum(last - self._blanks_after[flat], first)
        offsets = np.stack([first, last], axis=1)
        sizes = list(map(len, ranks))
        begins = np.cumsum([0, *map(len, texts)])[:-1]
        offsets -= np.repeat(begins, sizes)[:, None]
        pairs = zip(_cut(self._index_of[flat], sizes), _cut(offsets.astype(np.int32), sizes), strict=True)
        return [Encoding(ids, places) for ids, places in pairs]

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        eos = len(self._index_of) - 1
        ranks = list(map(self._ranks, texts))
        for numbers in ranks:
            numbers.append(eos)
        return _cut(self._index_of[_flat(ranks)], list(map(len, ranks)))

    def decode(self, indices: np.ndarray) -> str:
        return self._backend.decode(self._rank_of[indices].tolist())

    def _ranks(self, text: str) -> list[int]:
        if len(text) <= LONG_BLANK:
            return self._backend.encode_ordinary(text)
        # tiktoken's regular expression gives up on a run of some 100,000 blanks: such runs are cut
        edges = [0, *(run.end() for run in re.finditer(rf"\s{{{LONG_BLANK}}}", text)), len(text)]
        parts = (text[begin:end] for begin, end in itertools.pairwise(edges))
        return list(itertools.chain.from_iterable(map(self._backend.encode_ordinary, parts)))


def read_merges(folder: Path) -> list[list[str]]:
    """The pairs that ``vocab.bpe`` merges, the first first."""
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [line.split(" ") for line in lines if not line.startswith("#version")]


class SentencePiece(TokenizerType):
    """fairseq's ``--bpe sentencepiece``: in parallel on all cores.

    The library gives a character that normalisation takes apart (a ligature, say) to one of its tokens
    only, so the offsets come from its normaliser: the pieces one after the other are the text that it makes.
    """

    files = ("sentencepiece.bpe.model",)

    def __init__(self, folder: Path, dictionary: Dictionary) -> None:
        self._processor = processor = read_sentencepiece(folder)
        ids = range(processor.GetPieceSize())
        self._bytes = {processor.IdToPiece(i) for i in ids if processor.IsByte(i)}
        pieces = {processor.IdToPiece(i) for i in ids if not (processor.IsControl(i) or processor.IsUnknown(i))}
        pieces -= self._bytes
        _check_dictionary(folder, sum(piece in dictionary for piece in pieces), len(pieces))
        self._dictionary = dictionary
        self._tokens = lru_cache(CACHE)(
            lambda piece: _tokens(piece, 1 if piece in self._bytes else len(piece), dictionary)
        )

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return [self._encoding(text, pieces) for text, pieces in zip(texts, self._pieces(texts), strict=True)]

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        tokens, eos = self._tokens, self._dictionary.eos()
        return [
            np.array([*(index for piece in pieces for index, _, _ in tokens(piece)), eos], dtype=np.int32)
            for pieces in self._pieces(texts)
        ]

    def decode(self, indices: np.ndarray) -> str:
        return self._processor.Decode([self._dictionary[index] for index in indices]) if len(indices) else ""

    def _pieces(self, texts: Sequence[str]) -> list[list[str]]:
        return self._processor.Encode(list(texts), out_type=str)

    def _encoding(self, text: str, pieces: list[str]) -> Encoding:
        # character i of the normal text comes from the characters starts[i] to ends[i] of the text: to where the
        # next one starts that does not come from the same place
        normal, starts = self._processor.Normalize(text, with_offsets=True)
        ends = starts[1:]
        for i in range(len(ends) - 2, -1, -1):
            if ends[i] == starts[i]:
                ends[i] = ends[i + 1]
        ids, offsets = [], []
        for piece, place in zip(pieces, self._places(pieces, normal), strict=True):
            for index, first, last in self._tokens(piece):
                first, last = place + first, place + last
                while first < last and normal[first] == BLANK:
                    first += 1
                while first < last and normal[last - 1] == BLANK:
                    last -= 1
                ids.append(index)
                offsets += (starts[first], ends[last - 1] if first < last else starts[first])
        encoding = _encoding(ids, offsets)
        # a blank may come from the midst of a character, as in a ligature of several words
        np.maximum.accumulate(encoding.offsets[:, 1], out=encoding.offsets[:, 1])
        return encoding

    def _places(self, pieces: list[str], normal: str) -> Iterator[int]:
        """Where in the normal text each piece starts."""
        place, left = 0, 0
        for piece in pieces:
            yield place
            if piece in self._bytes:
                # one of the UTF-8 bytes of a character that the model does not know
                left = (left or len(normal[place].encode())) - 1
                place += left == 0
            else:
                place += len(piece)


def read_sentencepiece(folder: Path) -> SentencePieceProcessor:
    """Read ``sentencepiece.bpe.model``. Raises MuppetError without the package, and what the library does."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MuppetError(
            f"tokenizer folder {folder}: type 'sentencepiece' needs a package; pip install sentencepiece"
        ) from None
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto((folder / SentencePiece.files[0]).read_bytes())
    return processor


class FastBPE(TokenizerType):
    """fairseq's ``--bpe fastbpe``.

    The codes are applied here, by the algorithm of the package ``fastBPE``, and not by the package: that must be
    compiled, gives no offsets, and works out every word anew, where most words of a text come again and again.
    Hugging Face's BPE would not do: it makes one merge at a time where fastBPE makes all of a rank, which differs
    for codes that reach a piece in two ways.
    """

    files = ("codes",)

    def __init__(self, folder: Path, dictionary: Dictionary) -> None:
        text = (folder / self.files[0]).read_bytes().decode()
        # not splitlines(): a piece may hold any character but the space and the line feed
        lines = [line.split(" ") for line in text.removesuffix("\n").split("\n")]
        for number, columns in enumerate(lines, 1):
            if len(columns) not in (2, 3) or not all(columns):
                raise ValueError(f"line {number} is not 'piece piece count'")
        self._rank = {(first, second): rank for rank, (first, second, *_) in enumerate(lines)}
        self._dictionary = dictionary
        self._cached_word = lru_cache(CACHE)(self._word)
        made = {(first + second).removesuffix(END_OF_WORD) for first, second in self._rank}
        pieces = [symbol.removesuffix(CONTINUED) for symbol in dictionary.symbols[dictionary.nspecial :]]
        # counted the other way round than for the other types: many a piece of the codes is always merged on
        known = sum(len(piece) == 1 or piece in made for piece in pieces)
        if 2 * known <= len(pieces):
            raise MuppetError(
                f"tokenizer folder {folder}: the codes make only {known} of the {len(pieces)} tokens of dict.txt; "
                f"put the dictionary of this tokenizer there"
            )

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings = []
        for text in texts:
            ids, offsets, place = [], [], 0
            for word in text.split(" "):
                indices, edges = self._tokens(word)
                ids += indices
                offsets += [place + edge for edge in edges]
                place += len(word) + 1
            encodings.append(_encoding(ids, offsets))
        return encodings

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        eos = self._dictionary.eos()
        return [
            np.array([*(index for word in text.split(" ") for index in self._tokens(word)[0]), eos], dtype=np.int32)
            for text in texts
        ]

    def decode(self, indices: np.ndarray) -> str:
        text = " ".join([self._dictionary[index] for index in indices])
        return f"{text} ".replace(f"{CONTINUED} ", "")

    def _tokens(self, word: str) -> tuple[list[int], list[int]]:
        return (self._cached_word if len(word) <= CACHED_WORD else self._word)(word)

    def _word(self, word: str) -> tuple[list[int], list[int]]:
        """The indices of a word's tokens and, one after the other, their offsets in it."""
        *front, back = self._merged(word)
        symbols = [piece + CONTINUED for piece in front] + [back.removesuffix(END_OF_WORD)]
        ids, edges, place = [], [], 0
        for symbol, size in zip(symbols, [*map(len, front), len(symbols[-1])], strict=True):
            for index, first, last in _tokens(symbol, size, self._dictionary):
                ids.append(index)
                edges += (place + first, place + last)
            place += size
        return ids, edges

    def _merged(self, word: str) -> list[str]:
        """The pieces of a word, the last with the mark of its end."""
        # a NUL ends the word for fastBPE when it cuts it into characters, so what follows stays in one piece
        cut = max(len((word + "\0").partition("\0")[0]) - 1, 0)
        pieces = [*word[:cut], word[cut:] + END_OF_WORD]
        rank, end = self._rank, len(pieces)
        # a piece stays where its first character is; each knows where those beside it are
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        heap = [(rank[pair], place) for place, pair in enumerate(itertools.pairwise(pieces)) if pair in rank]
        heapq.heapify(heap)
        while heap:
            # all pairs of this rank, from the left, before those that the merges make
            best, places = heap[0][0], []
            while heap and heap[0][0] == best:
                places.append(heapq.heappop(heap)[1])
            for place in places:
                right = after[place]
                if right == end or rank.get((pieces[place], pieces[right])) != best:
                    continue
                pieces[place] += pieces[right]
                pieces[right] = ""
                after[place] = after[right]
                if after[place] < end:
                    before[after[place]] = place
                for left in (before[place], place):
                    if left >= 0 and after[left] < end and (pair := (pieces[left], pieces[after[left]])) in rank:
                        heapq.heappush(heap, (rank[pair], left))
        return [piece for piece in pieces if piece]


#: a tokenizer folder's ``type`` and what reads it
TYPES: dict[str, type[TokenizerType]] = {
    "bert": TokenizerJson,
    "gpt2": Gpt2,
    "sentencepiece": SentencePiece,
    "fastbpe": FastBPE,
    "unigram": TokenizerJson,
}


def _tokens(piece: str, size: int, dictionary: Dictionary) -> list[tuple[int, int, int]]:
    """The tokens of a piece that stands for ``size`` characters: index, first character and one past the last.

    It is one as a rule; but ``Dictionary.encode_line`` splits at every white space, which a piece may hold or be.
    """
    if piece.split() == [piece]:
        return [(dictionary.index(piece), 0, size)]
    return [
        (dictionary.index(match[0]), min(match.start(), size), min(match.end(), size))
        for match in TOKEN.finditer(piece)
    ]


def _encoding(ids: list[int], offsets: list[int]) -> Encoding:
    return Encoding(np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int32).reshape(-1, 2))


def _flat(lists: Sequence[list[int]]) -> np.ndarray:
    """All numbers of several lists, one after the other, ``[n]``."""
    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.intp, count=sum(map(len, lists)))


def _cut(flat: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The pieces of ``flat`` ``[n, ...]`` with the given sizes."""
    edges = [0, *itertools.accumulate(sizes)]
    return [flat[begin:end] for begin, end in itertools.pairwise(edges)]


def _check_dictionary(folder: Path, known: int, tokens: int) -> None:
    if 2 * known < tokens:
        raise MuppetError(
            f"tokenizer folder {folder}: dict.txt knows only {known} of the tokenizer's {tokens} tokens; put the "
            f"dictionary of this tokenizer there"
        )
