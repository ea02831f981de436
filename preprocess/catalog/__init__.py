"""The datasets, one declarative entry each; a module of this package for each family, in the paper's order.

To add a dataset, write its :class:`preprocess.entry.Entry` into the module of its family.
"""

from __future__ import annotations

from muppet_fairseq.errors import MuppetError, nearest
from preprocess.catalog import classification, commonsense, mini, mrc, regression, summarization, tagging
from preprocess.entry import Entry

_MODULES = (classification, summarization, commonsense, mrc, regression, tagging, mini)

CATALOG: dict[str, Entry] = {entry.name: entry for module in _MODULES for entry in module.ENTRIES}


def lookup(name: str) -> Entry:
    """Return the entry of a dataset. Raises MuppetError with the nearest name if there is none."""
    if name not in CATALOG:
        raise MuppetError(f"unknown dataset {name!r}{nearest(name, CATALOG)}; 'python -m preprocess list' names all")
    return CATALOG[name]
