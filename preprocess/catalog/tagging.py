"""Tagging datasets; for fine-tuning only. All are made of the Penn Treebank, which users bring themselves."""

from __future__ import annotations

import re

from muppet_fairseq.trees import Tree
from preprocess.download import Row
from preprocess.entry import UNSTATED, BadRow, Entry, HeldOut
from preprocess.originals import Conll, Original, bracketed_trees

#: of CoNLL-2000: ``O``, and two tags of each
_CHUNKS = ("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP")
_CHUNK_TAGS = ("O", *(f"{place}-{kind}" for kind in _CHUNKS for place in "BI"))

#: how the treebank writes what stands in the newspaper
_WRITTEN = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"'}

_WSJ = "treebank_3/parsed/mrg/wsj/{split}/*.mrg"
_LDC = "Linguistic Data Consortium, LDC99T42; the user's own copy"
_MARCUS = (
    "Marcus et al. 1993, Building a Large Annotated Corpus of English: The Penn Treebank, Computational Linguistics"
)


def _plain(word: str) -> str:
    """A word as running text has it: what a model was pre-trained on."""
    return _WRITTEN.get(word) or re.sub(r"\\([/*])", r"\1", word)


def _conll_words(row: Row) -> list[str]:
    return [_plain(word) for word in row["tokens"]]


def _tree(row: Row) -> Tree:
    """A row's tree without traces and function tags (``NP-SBJ-1`` is ``NP``), as parsers are trained and scored."""
    tree = Tree.from_nested(row["tree"]).without("-NONE-".__eq__)
    if tree is None:
        raise BadRow("it has nothing but traces")
    named = (found._replace(label=re.split("[-=]", found.label)[0]) for found in tree.constituents)
    return Tree(tuple(map(_plain, tree.words)), tree.tags, tuple(named))


def _words(row: Row) -> list[str]:
    return list(_tree(row).words)


def _parts_of_speech(row: Row) -> list[str]:
    return list(_tree(row).tags)


def _tree_labels(row: Row) -> list[str]:
    return _tree(row).labels()


def _tree_text(row: Row) -> str:
    return _tree(row).text()


def _sections(**splits: tuple[int, int]) -> Original:
    """The trees of the Wall Street Journal's sections, from the first to the last of each split."""
    names = {split: [f"{number:02}" for number in range(first, last + 1)] for split, (first, last) in splits.items()}
    return Original(_WSJ, bracketed_trees, names)


_SPLITS = {"train": "train", "valid": "valid", "test": "test"}

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "ptb_chunking",
        "tagging",
        Original("conll2000/{split}.txt", Conll("tokens", "pos_tags", "chunk_tags")),
        {"words": _conll_words, "tags": "chunk_tags"},
        HeldOut(1_000, others={"test": "test"}),
        labels=_CHUNK_TAGS,
        metric="chunk_f1",
        published={"train": 8_936, "test": 2_012},
        licence=UNSTATED,
        citation="Tjong Kim Sang & Buchholz 2000, Introduction to the CoNLL-2000 Shared Task: Chunking, CoNLL-2000",
        note="Published scores are those of the split test; it has none to choose a model by, hence valid.",
    ),
    Entry(
        "ptb_pos",
        "tagging",
        _sections(train=(0, 18), valid=(19, 21), test=(22, 24)),
        {"words": _words, "tags": _parts_of_speech},
        _SPLITS,
        metric="accuracy",
        published={"train": 38_219, "valid": 5_527, "test": 5_462},
        licence=_LDC,
        citation=_MARCUS,
        note="Sections 0-18, 19-21 and 22-24, as Collins 2002 split them and most since.",
    ),
    Entry(
        "ptb_parsing",
        "tagging",
        _sections(train=(2, 21), valid=(22, 22), test=(23, 23)),
        {"words": _words, "tags": _tree_labels, "tree": _tree_text},
        _SPLITS,
        metric="bracket_f1",
        published={"train": 39_832, "valid": 1_700, "test": 2_416},
        licence=_LDC,
        citation=f"{_MARCUS}; labels: Gómez-Rodríguez & Vilares 2018, arXiv:1810.08994",
        note="Sections 2-21, 22 and 23. Trees as labels of words; no part of speech is given to the model.",
    ),
)
