"""Which commits of the hub's repositories a data-bin folder was made from, so that it can be made again.

A revisions file is JSON: ``{"nyu-mll/glue@refs/convert/parquet": "<commit>"}``. ``prepare`` keeps one in the folder
that it writes, and goes by it when it goes on there; on another machine it is given with ``--revisions``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text

#: the file's name in a data-bin folder
NAME = "revisions.json"
_COMMIT = re.compile("[0-9a-f]{40}")


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which stays as it is, and not a branch or tag."""
    return _COMMIT.fullmatch(revision) is not None


def read_revisions(path: Path) -> dict[str, str]:
    """Read a revisions file: commits by ``repository@branch``. Raises MuppetError if it is none."""
    try:
        revisions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MuppetError(f"{path} cannot be read as a revisions file ({error}); name one that prepare wrote") from None
    if not isinstance(revisions, dict):
        raise MuppetError(f"{path} is no revisions file, a JSON object; name one that prepare wrote")
    for key, commit in revisions.items():
        if not re.fullmatch(r"[^@/]+/[^@/]+@[^@]+", key):
            raise MuppetError(f"{path} names {key[:60]!r}, which is not 'owner/name@branch'; correct it")
        if not isinstance(commit, str) or not is_commit(commit):
            raise MuppetError(
                f"{path} gives {key[:60]} the commit {str(commit)[:60]!r}, which is not 40 digits of 0-9a-f; correct it"
            )
    return revisions


def add_revisions(path: Path, revisions: dict[str, str]) -> None:
    """Add commits to a revisions file, in the place of others of the same branch. Raises MuppetError."""
    known = read_revisions(path) if path.exists() else {}
    if known | revisions != known:
        write_text(path, json.dumps(dict(sorted((known | revisions).items())), indent=1) + "\n")
