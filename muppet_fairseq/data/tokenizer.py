"""From text to dictionary indices, with the characters that each token covers.

A tokenizer is a folder: ``config.json`` (``{"type": "bert"}`` or ``{"type": "gpt2"}``), the files of that type
(:data:`FILES`) and ``dict.txt``, a fairseq dictionary. Both types run on Hugging Face ``tokenizers``, which
gives the same ids as fairseq's own GPT-2 BPE, in parallel and with character offsets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from fairseq.data import Dictionary

from muppet_fairseq.errors import MuppetError

#: the files of each type beside ``config.json`` and ``dict.txt``
FILES = {"bert": ("tokenizer.json",), "gpt2": ("encoder.json", "vocab.bpe")}


@dataclass(frozen=True)
class Encoding:
    """The tokens of one text, special tokens not among them.

    ``ids``: dictionary indices, int32 ``[tokens]``. ``offsets``: first character and one past the last, int32
    ``[tokens, 2]``; both columns never decrease. The spaces before a word belong to no token, a token of spaces
    only covers nothing, and the tokens of one character (an emoji has four bytes) all cover that character.
    """

    ids: np.ndarray
    offsets: np.ndarray


class Tokenizer:
    """A tokenizer folder, loaded.

    Attributes:
        folder: where it was loaded from.
        type: a key of :data:`FILES`.
        dictionary: fairseq's dictionary of ``dict.txt``, with ``<mask>`` last as in fairseq's RoBERTa tasks.
        sha256: fingerprint of the type and its files; ``dict.txt`` has its own (:func:`dictionary_sha256`).
    """

    def __init__(self, folder: Path, kind: str, backend: tokenizers.Tokenizer, dictionary: Dictionary) -> None:
        self.folder = folder
        self.type = kind
        self.dictionary = dictionary
        self.sha256 = _fingerprint(folder, kind)
        self._backend = backend
        self._index_of = _dictionary_indices(folder, kind, backend, dictionary)
        self._id_of = np.zeros(len(dictionary), dtype=np.intp)
        self._id_of[self._index_of] = np.arange(len(self._index_of))

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Load a tokenizer folder.

        Raises:
            MuppetError: a file is missing or damaged, or ``dict.txt`` belongs to another vocabulary.
        """
        folder = Path(folder)
        kind = _type(folder)
        for name in (*FILES[kind], "dict.txt"):
            if not (folder / name).is_file():
                raise MuppetError(f"tokenizer folder {folder} has no {name}, which type {kind!r} needs; add it")
        try:
            backend = _bert(folder) if kind == "bert" else _gpt2(folder)
        except Exception as error:  # the backend raises plain Exception for a damaged file
            names = " or ".join(FILES[kind])
            raise MuppetError(f"tokenizer folder {folder}: {names} is damaged ({error}); copy it there again") from None
        return cls(folder, kind, backend, load_dictionary(folder / "dict.txt"))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts, many at a time: they are shared out to all CPU cores."""
        return [
            Encoding(self._ids(encoded.ids), np.array(encoded.offsets, dtype=np.int32).reshape(-1, 2))
            for encoded in self._backend.encode_batch(list(texts), add_special_tokens=False)
        ]

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode texts to dictionary indices with ``</s>`` at the end, int32 ``[tokens + 1]`` each."""
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self.with_eos(self._ids(encoded.ids)) for encoded in batch]

    def decode(self, indices: Sequence[int]) -> str:
        """Turn dictionary indices ``[n]``, special tokens left out, back into a text."""
        return self._backend.decode(self._id_of[np.asarray(indices, dtype=np.intp)].tolist()).strip()

    def with_eos(self, ids: np.ndarray) -> np.ndarray:
        """Return ``ids`` ``[n]`` followed by ``</s>``, ``[n + 1]``."""
        return np.append(ids, np.int32(self.dictionary.eos()))

    def save(self, folder: str | Path) -> None:
        """Copy the folder's files to ``folder``; ``config.json`` last, for without it the copy does not load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*FILES[self.type], "dict.txt", "config.json"):
            temporary = folder / f".{name}.partial"
            shutil.copyfile(self.folder / name, temporary)
            os.replace(temporary, folder / name)

    def _ids(self, ids: list[int]) -> np.ndarray:
        return self._index_of[np.array(ids, dtype=np.intp)]


def load_dictionary(path: Path) -> Dictionary:
    """Load a fairseq dictionary file and add ``<mask>``.

    Raises:
        MuppetError: the file is missing or no dictionary.
    """
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # fairseq raises plain Exception for text that is not UTF-8
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MuppetError(f"{path} is no fairseq dictionary ({reason}); it needs one 'token count' a line") from None
    dictionary.add_symbol("<mask>")
    return dictionary


def dictionary_sha256(path: str | Path) -> str:
    """Return :func:`symbols_sha256` of a ``dict.txt``, in hexadecimal."""
    return symbols_sha256(Path(path).read_bytes()).hex()


def symbols_sha256(dictionary: bytes) -> bytes:
    """Return the SHA-256 of the symbols, in order, of a ``dict.txt`` with this content.

    It tells binarised data and checkpoints of one dictionary from those of another. The counts, which an import
    from another format does not know, are left out.
    """
    symbols = (line.rpartition(b" ")[0] for line in dictionary.rstrip(b"\n").split(b"\n"))
    return hashlib.sha256(b"\n".join(symbols)).digest()


def _type(folder: Path) -> str:
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["type"]
    except OSError as error:
        raise MuppetError(
            f"{folder} is no tokenizer folder: {path.name} cannot be read ({error.strerror}); name a folder "
            f"with config.json, dict.txt and the tokenizer's files"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise MuppetError(f'{path} must hold {{"type": ...}} with one of {", ".join(FILES)}') from None
    if kind not in FILES:
        raise MuppetError(f"{path} names the type {kind!r}; it must be one of {', '.join(FILES)}")
    return kind


def _bert(folder: Path) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    if backend.decoder is None:
        backend.decoder = tokenizers.decoders.WordPiece()
    return backend


def _gpt2(folder: Path) -> tokenizers.Tokenizer:
    files = (str(folder / name) for name in FILES["gpt2"])
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(*tokenizers.models.BPE.read_file(*files)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    # takes the blank before a word out of its token's offsets, as the span of an answer needs it
    backend.post_processor = tokenizers.processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _fingerprint(folder: Path, kind: str) -> str:
    digest = hashlib.sha256(kind.encode())
    for name in FILES[kind]:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def _dictionary_indices(folder: Path, kind: str, backend: tokenizers.Tokenizer, dictionary: Dictionary) -> np.ndarray:
    """The dictionary index of each backend id, int32 ``[largest id + 1]``; unk where there is none."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    index_of = np.full(max(vocabulary.values()) + 1, dictionary.unk(), dtype=np.int32)
    for token, number in vocabulary.items():
        # fairseq's published GPT-2 dictionaries hold the ids themselves, as decimal strings
        index_of[number] = dictionary.index(token if kind == "bert" else str(number))
    known = int((index_of != dictionary.unk()).sum())
    if 2 * known < len(vocabulary):
        raise MuppetError(
            f"tokenizer folder {folder}: dict.txt knows only {known} of the tokenizer's {len(vocabulary)} "
            f"tokens; put the dictionary of this tokenizer there"
        )
    return index_of
