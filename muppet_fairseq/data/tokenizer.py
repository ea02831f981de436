"""From text to dictionary indices, with the characters that each token covers.

A tokenizer is a folder: ``config.json`` (``{"type": "gpt2"}``, say), the files of that type (:data:`FILES`) and
``dict.txt``, a fairseq dictionary. The indices are those that fairseq's own encoder of the type gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from fairseq.data import Dictionary

from muppet_fairseq.data.tokenizer_types import TYPES, Encoding, TokenizerType
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import read_up_to

#: bytes; one of a million tokens has some 20 MB
_LARGEST_DICTIONARY = 1 << 25

#: the files of each type beside ``config.json`` and ``dict.txt``
FILES = {kind: tokenizer_type.files for kind, tokenizer_type in TYPES.items()}


class Tokenizer:
    """A tokenizer folder, loaded.

    Attributes:
        folder: where it was loaded from.
        type: a key of :data:`FILES`.
        dictionary: fairseq's dictionary of ``dict.txt``, with ``<mask>`` last as in fairseq's RoBERTa tasks.
        sha256: fingerprint of the type and its files; ``dict.txt`` has its own (:func:`dictionary_sha256`).
    """

    def __init__(self, folder: Path, kind: str, backend: TokenizerType, dictionary: Dictionary) -> None:
        self.folder = folder
        self.type = kind
        self.dictionary = dictionary
        self.sha256 = _fingerprint(folder, kind)
        self._backend = backend

    def __reduce__(self) -> tuple[Callable[[Path], Tokenizer], tuple[Path]]:
        """To another process goes the folder's name, for not all types can be pickled."""
        return _loaded, (self.folder,)

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
        dictionary = load_dictionary(folder / "dict.txt")
        try:
            backend = TYPES[kind](folder, dictionary)
        except MuppetError:
            raise
        except Exception as error:  # the libraries raise what they like for a damaged file
            names = " or ".join(FILES[kind])
            reason = " ".join(str(error).split())
            raise MuppetError(
                f"tokenizer folder {folder}: {names} is damaged ({reason}); copy it there again"
            ) from None
        _LOADED[folder] = tokenizer = cls(folder, kind, backend, dictionary)
        return tokenizer

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts, many at a time: they are shared out to all CPU cores where the type can."""
        return self._backend.encode(texts)

    def encode_with_eos(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode texts to dictionary indices with ``</s>`` at the end, int32 ``[tokens + 1]`` each."""
        return self._backend.encode_with_eos(texts)

    def decode(self, indices: Sequence[int]) -> str:
        """Turn dictionary indices ``[n]``, special tokens left out, back into a text."""
        return self._backend.decode(np.asarray(indices, dtype=np.intp)).strip()

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


#: what was last loaded from each folder, here or in the process of which this one is a fork
_LOADED: dict[Path, Tokenizer] = {}


def _loaded(folder: Path) -> Tokenizer:
    return _LOADED.get(folder) or Tokenizer.load(folder)


def load_dictionary(path: Path) -> Dictionary:
    """Load a fairseq dictionary file and add ``<mask>``.

    Raises:
        MuppetError: the file is missing or no dictionary.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        read_up_to(path, _LARGEST_DICTIONARY)
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
        kind = json.loads(read_up_to(path, 1 << 20).decode())["type"]
    except OSError as error:
        raise MuppetError(
            f"{folder} is no tokenizer folder: {path.name} cannot be read ({error.strerror}); name a folder "
            f"with config.json, dict.txt and the tokenizer's files"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MuppetError(f'{path} must hold {{"type": ...}} with one of {", ".join(FILES)}') from None
    if not isinstance(kind, str) or kind not in FILES:
        raise MuppetError(f"{path} names the type {str(kind)[:60]!r}; it must be one of {', '.join(FILES)}")
    return kind


def _fingerprint(folder: Path, kind: str) -> str:
    digest = hashlib.sha256(kind.encode())
    for name in FILES[kind]:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
