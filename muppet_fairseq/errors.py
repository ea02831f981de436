"""The one exception for what a user can mend, and how it reaches the terminal: one sentence, no traceback."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable
from types import TracebackType

#: the system's numbers for a full disk, and for one that is full for this user
FULL = (errno.ENOSPC, errno.EDQUOT)


class MuppetError(Exception):
    """Something the user did or has: one sentence that says what is wrong, where, and what to do.

    Uncaught it ends the process with status 1 and only that sentence on standard error
    (:func:`report_without_traceback`); a program that calls the package catches it like any exception.
    """


def sentence_of(error: BaseException | None) -> str | None:
    """Return the sentence of the :class:`MuppetError` or the full disk that caused ``error``, or None.

    fairseq re-raises some errors as plain ``Exception`` ("Cannot load model parameters ..."); PyTorch turns the
    error of a process that it started into text, for a data loader's as the message of an error of the same
    type: the sentence is looked for in all of them.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        marker = f"{MuppetError.__module__}.{MuppetError.__name__}: "
        if marker in str(error):
            return str(error).rpartition(marker)[2].partition("\n")[0].strip()
        if isinstance(error, MuppetError):
            return str(error)
        if isinstance(error, OSError) and error.errno in FULL:
            # a log, or what else a library writes
            return f"cannot write {error.filename or 'a file'} ({error.strerror}); make room, and start this again"
        error = error.__cause__ or error.__context__
    return None


def sentences_in(text: str) -> list[str]:
    """The sentences in what a process has printed; of several workers PyTorch puts the rank before them."""
    return re.findall(r"^(?:\[rank\d+\]: )?muppet: (.*)$", text, flags=re.MULTILINE)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``words``, or nothing."""
    match = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def report_without_traceback() -> None:
    """Install an exception hook that prints a :class:`MuppetError` as its one sentence."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = sentence_of(error)
        if sentence is None:
            previous(kind, error, traceback)
        else:
            print(f"muppet: {sentence}", file=sys.stderr, flush=True)

    sys.excepthook = hook
