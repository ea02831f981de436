"""Constituency trees: as bracketed text, and as one label a word from which the tree comes back.

The labels are those of Gómez-Rodríguez & Vilares 2018, *Constituent Parsing as Sequence Labeling*, §3, in their
relative form: a word's label says how many more (or fewer) constituents it shares with the next word than it shared
with the one before, what the lowest constituent that the two share is called, and which constituents hold the word
alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

#: what treebanks call the bracket around a sentence, which is no constituent
ROOTS = frozenset({"", "TOP", "ROOT", "S1"})
#: the part of speech of a word whose own nobody knows, as in the Penn Treebank
UNKNOWN_TAG = "XX"
#: the label of a word that nothing is known of
NO_LABEL = ""
#: constituents, one within the other, that begin or end at one word
_DEEPEST = 1000


class Constituent(NamedTuple):
    """A bracket around the words from ``start`` to ``end`` (one past the last)."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Tree:
    """A tree, or several side by side, over at least one word.

    Without recursion: what is as deep as a sentence is long must not need a stack as deep.

    Attributes:
        words: the leaves.
        tags: the part of speech of each word, never empty.
        constituents: in the order in which their brackets open; none is without words. The outermost bracket of
            :data:`ROOTS` is not among them. A label has neither white space nor brackets.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    constituents: tuple[Constituent, ...]

    @classmethod
    def parse(cls, text: str) -> Tree:
        """Read bracketed text, ``(TOP (S (NP (DT the) (NN end)) (. .)))``; ``-LRB-`` is the word ``(``.

        Raises:
            ValueError: it is not one tree with at least one word.
        """
        tokens = re.findall(r"[()]|[^\s()]+", text)
        builder, place = _Builder(), 0
        while place < len(tokens):
            if tokens[place] == ")":
                builder.close()
                place += 1
                continue
            if tokens[place] != "(":
                raise ValueError(f"{tokens[place]!r} stands where a bracket should open")
            inside = tokens[place + 1 : place + 4]
            named = bool(inside) and inside[0] not in "()"
            if named and len(inside) == 3 and inside[1] not in "()" and inside[2] == ")":
                builder.leaf(inside[0], inside[1].replace("-LRB-", "(").replace("-RRB-", ")"))
                place += 4
            else:
                builder.open(inside[0] if named else "")
                place += 1 + named
        return builder.tree()

    @classmethod
    def from_nested(cls, nested: Sequence[Any]) -> Tree:
        """Take a tree as nested sequences, ``("S", ("NP", ("DT", "the"), ("NN", "end")), (".", "."))``.

        Raises:
            ValueError: it has no words.
        """
        builder, todo = _Builder(), [nested]
        while todo:
            part = todo.pop()
            if part is None:
                builder.close()
            elif len(part) == 2 and isinstance(part[1], str):
                builder.leaf(*part)
            else:
                builder.open(part[0])
                todo += [None, *reversed(part[1:])]
        return builder.tree()

    @classmethod
    def from_labels(cls, labels: Sequence[str], words: Sequence[str], tags: Sequence[str] | None = None) -> Tree:
        """Return a tree over all ``words`` for any sequence of labels, one a word; the inverse of :meth:`labels`.

        Labels that no tree has are read as follows: a constituent is called what the first label that names it says;
        one that none names is left out, its parts staying where they are; there are never fewer than no constituents
        around two words. A word with :data:`NO_LABEL` goes directly below the outermost constituent.

        Args:
            tags: parts of speech; None: unknown.
        """
        found: list[Constituent] = []
        open_nodes: list[tuple[int, tuple[str, ...]]] = []  # start and names, outermost first
        for place, label in enumerate(labels):
            more, names, alone = _read(label)
            shared = max(0, len(open_nodes) + more) if label != NO_LABEL else min(1, len(open_nodes))
            if place == len(labels) - 1:
                shared = 0
            open_nodes += [(place, ())] * (shared - len(open_nodes))
            found += [Constituent(name, place, place + 1) for name in alone]
            if shared and not open_nodes[shared - 1][1]:
                open_nodes[shared - 1] = (open_nodes[shared - 1][0], names)
            for start, own in open_nodes[shared:]:
                found += [Constituent(name, start, place + 1) for name in own]
            del open_nodes[shared:]
        # two nodes with names never have the same words, so this is the order of the opening brackets
        found.sort(key=lambda constituent: (constituent.start, -constituent.end))
        return cls(tuple(words), tuple(tags if tags is not None else [UNKNOWN_TAG] * len(words)), tuple(found))

    def labels(self) -> list[str]:
        """Return one label a word: ``shared names alone``, with a blank between.

        ``shared`` is the number of constituents that hold this word and the next, less that number of the word
        before; ``names`` those of the lowest of them, ``alone`` those of the constituents that hold the word alone,
        outermost first: each after an opening bracket (as ``(S(VP``, which no name can have in it), or ``-`` for
        none. Constituents around the same words count as one with several names. Of the last word, only ``alone``
        says something.
        """
        chains: dict[tuple[int, int], list[str]] = {}
        for label, start, end in self.constituents:
            chains.setdefault((start, end), []).append(label)
        shared = [0] * len(self.words)
        lowest: list[list[str]] = [[] for _ in self.words]
        for (start, end), chain in chains.items():
            # outer ones first, so that inner ones have the last word
            for place in range(start, end - 1):
                shared[place] += 1
                lowest[place] = chain
        labels, before = [], 0
        for place in range(len(self.words)):
            last = place == len(self.words) - 1
            more = 0 if last else shared[place] - before
            before = shared[place]
            labels.append(f"{more} {_written(lowest[place])} {_written(chains.get((place, place + 1), []))}")
        return labels

    def text(self) -> str:
        """Return the tree in brackets, on one line, within one of ``TOP``; :meth:`parse` reads it."""
        opening: list[list[str]] = [[] for _ in self.words]
        closing = [0] * len(self.words)
        for label, start, end in self.constituents:
            opening[start].append(f"({label} ")
            closing[end - 1] += 1
        leaves = (
            f"{''.join(brackets)}({tag} {word.replace('(', '-LRB-').replace(')', '-RRB-')}){')' * closed}"
            for brackets, tag, word, closed in zip(opening, self.tags, self.words, closing, strict=True)
        )
        return f"(TOP {' '.join(leaves)})"

    def without(self, removed: Callable[[str], bool]) -> Tree | None:
        """Leave out the words with a tag of which ``removed`` is true, and constituents of no other words.

        Returns None where no word is left.
        """
        kept = [place for place, tag in enumerate(self.tags) if not removed(tag)]
        if not kept:
            return None
        before, count = [0], 0
        for tag in self.tags:
            count += not removed(tag)
            before.append(count)
        spans = (Constituent(label, before[start], before[end]) for label, start, end in self.constituents)
        return Tree(
            tuple(self.words[place] for place in kept),
            tuple(self.tags[place] for place in kept),
            tuple(span for span in spans if span.start < span.end),
        )


class _Builder:
    """Makes a tree of brackets that open and close."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._tags: list[str] = []
        self._found: list[Constituent] = []
        self._open: list[int] = []
        self._complete = False

    def _check_not_complete(self) -> None:
        if self._complete:
            raise ValueError("something follows its last bracket")

    def open(self, label: str) -> None:
        self._check_not_complete()
        self._open.append(len(self._found))
        self._found.append(Constituent(label, len(self._words), -1))

    def leaf(self, tag: str, word: str) -> None:
        self._check_not_complete()
        self._words.append(word)
        self._tags.append(tag)
        self._complete = not self._open

    def close(self) -> None:
        if not self._open:
            raise ValueError("it closes a bracket that is not open")
        place = self._open.pop()
        self._found[place] = self._found[place]._replace(end=len(self._words))
        self._complete = not self._open

    def tree(self) -> Tree:
        if self._open:
            raise ValueError("it leaves a bracket open")
        if not self._words:
            raise ValueError("it has no words")
        # the first bracket closes last, so the first of ROOTS is around all
        is_root = bool(self._found) and self._found[0].label in ROOTS
        found = self._found[1:] if is_root else self._found
        spans = tuple(span for span in found if span.start < span.end)
        return Tree(tuple(self._words), tuple(self._tags), spans)


def is_label(text: str) -> bool:
    """Whether it may be one of :meth:`Tree.labels`, of a tree of sane depth."""
    try:
        more, *_ = _read(text)
    except ValueError:
        return False
    return abs(more) <= _DEEPEST


def _written(names: Sequence[str]) -> str:
    return "".join(f"({name}" for name in names) or "-"


def _read(label: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """A label's three parts. Raises ValueError for what is no label of :meth:`Tree.labels`."""
    if label == NO_LABEL:
        return 0, (), ()
    more, names, alone = label.split(" ")
    return int(more), tuple(names.split("(")[1:]), tuple(alone.split("(")[1:])
