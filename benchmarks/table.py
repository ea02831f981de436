"""A table of what benchmarks have reached, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from muppet_fairseq.errors import MuppetError


def markdown(files: Sequence[Path]) -> str:
    """One line for each target of each file, in the order given.

    Raises:
        MuppetError: a file is none that a benchmark has written.
    """
    lines = ["| benchmark | figure | to reach | measured | |", "| --- | --- | --- | --- | --- |"]
    for path in files:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            for target in result.get("targets", ()):
                sign = "≥" if target["at_least"] else "≤"
                reached = "reached" if target["reached"] else "**not reached**"
                what = f"| `{result['benchmark']}` | {target['what']} | {sign} {target['bound']:g} "
                lines.append(f"{what}| {target['value']:.4g} | {reached} |")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise MuppetError(f"{path} is no result of a benchmark ({error}); name files that --write wrote") from None
    return "\n".join(lines)
