"""Labelled brackets of trees, counted as ``evalb`` (Sekine & Collins) does with its parameter file ``COLLINS.prm``."""

from __future__ import annotations

import re
from collections import Counter

from muppet_fairseq.trees import ROOTS, Tree

#: parts of speech whose words are not there for evalb: traces and punctuation
DELETED_TAGS = frozenset({"-NONE-", ",", ":", "``", "''", "."})
_DELETED_LABELS = (ROOTS - {""}) | DELETED_TAGS


def bracket_counts(gold: Tree, predicted: Tree) -> tuple[int, int, int]:
    """Return the numbers of right, predicted and gold constituents of two trees over the same words.

    Words that are punctuation in the gold tree are left out of both before spans are compared, and so are
    constituents of nothing else; function tags do not count (``NP-SBJ`` is ``NP``), nor does the outermost bracket
    ``TOP``, nor the difference between ``ADVP`` and ``PRT``. Of several constituents with the same words and label,
    as many are right as both trees have.

    Raises:
        ValueError: the trees have different numbers of words.
    """
    if len(gold.words) != len(predicted.words):
        raise ValueError(f"the gold tree has {len(gold.words)} words, the predicted one {len(predicted.words)}")
    first, second = _brackets(gold, gold.tags), _brackets(predicted, gold.tags)
    return (first & second).total(), second.total(), first.total()


def _brackets(tree: Tree, tags: tuple[str, ...]) -> Counter[tuple[str, int, int]]:
    stripped = Tree(tree.words, tags, tree.constituents).without(DELETED_TAGS.__contains__)
    if stripped is None:
        return Counter()
    named = ((re.split("[-=]", label)[0], start, end) for label, start, end in stripped.constituents)
    return Counter(
        ("ADVP" if label == "PRT" else label, start, end) for label, start, end in named if label not in _DELETED_LABELS
    )
