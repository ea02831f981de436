"""The datasets, one declarative entry each; a module of this package for each family, in the paper's order.

To add a dataset, write its :class:`preprocess.entry.Entry` into the module of its family.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from muppet_fairseq.errors import MuppetError, nearest
from preprocess.catalog import classification, commonsense, mini, mrc, regression, summarization, tagging
from preprocess.entry import Entry
from preprocess.tasksource_entries import PREFIX, task_entry

_MODULES = (classification, summarization, commonsense, mrc, regression, tagging, mini)

CATALOG: dict[str, Entry] = {entry.name: entry for module in _MODULES for entry in module.ENTRIES}


def lookup(name: str, own: Mapping[str, Entry] = MappingProxyType({})) -> Entry:
    """Return the entry of a dataset of the catalog, of the user's ``own``, or of the package tasksource.

    Raises MuppetError with the nearest name if there is none.
    """
    known = {**CATALOG, **own}
    if name in known:
        return known[name]
    if name.startswith(PREFIX):
        return task_entry(name)
    raise MuppetError(f"unknown dataset {name!r}{nearest(name, known)}; 'python -m preprocess list' names all")
