"""YAML files as nodes, which know their lines: an error can name the line, and ``no`` stays the text that it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.files import read_up_to

#: bytes; the parser reads some 100 KB a second. (What ``*aliases`` repeat stays one node: nothing is multiplied.)
_LARGEST = 1 << 20
#: brackets within brackets; the parser takes time that grows with their square
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level == _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEEPEST} brackets are open", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


def compose(path: Path, what: str) -> yaml.Node | None:
    """Return a file's root node, None if it is empty; ``what`` it should be is for the error.

    Raises MuppetError with the line of what is no YAML.
    """
    try:
        return yaml.compose(read_up_to(path, _LARGEST).decode(), Loader=_Loader)
    except OSError as error:
        raise MuppetError(f"{what} {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise MuppetError(f"{path}{line}: this is no YAML ({problem})") from None


def place(path: Path, node: yaml.Node) -> str:
    """``file, line n``: where a node begins."""
    return f"{path}, line {node.start_mark.line + 1}"


def items(
    node: yaml.MappingNode, path: Path, known: Iterable[str] | None = None
) -> Iterator[tuple[str, str, yaml.Node]]:
    """Yield (key, where it stands, value's node) of a mapping.

    Raises MuppetError for a key that is given twice or is none of ``known`` (None: all are good).
    """
    seen = set()
    for key_node, value_node in node.value:
        where = place(path, key_node)
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "[...]"
        if known is not None and key not in known:
            raise MuppetError(f"{where}: unknown key {key!r}{nearest(key, known)}; known are {', '.join(known)}")
        if key in seen:
            raise MuppetError(f"{where}: {key!r} is given twice")
        seen.add(key)
        yield key, where, value_node
