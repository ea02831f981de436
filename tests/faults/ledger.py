"""The table of ``make test-faults``: what was done to runs, how often, and what came of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from muppet_fairseq.files import write_text
from muppet_fairseq.provenance import hardware, versions

#: what makes the table
COMMAND = "make test-faults"


@dataclass
class Fault:
    """A row: ``survived`` of ``tries`` ended as they must, ``lost`` examples of an epoch were lost or repeated in all,
    and the slowest took ``recovery`` seconds to be back (None: where nothing is to come back)."""

    fault: str
    tries: int = 0
    survived: int = 0
    lost: int = 0
    recovery: float | None = None


class Ledger:
    """The rows of one session of tests."""

    KEY = pytest.StashKey["Ledger"]()

    def __init__(self) -> None:
        self.faults: dict[str, Fault] = {}

    def note(self, fault: str, *, survived: bool, tries: int = 1, lost: int = 0, recovery: float | None = None) -> None:
        """Add ``tries`` tries of a fault. Called before the test asserts, so that a failure is in the table, too."""
        self.add(Fault(fault, tries, tries if survived else 0, lost, recovery))

    def add(self, more: Fault) -> None:
        """Add a row of this process, or of another one, to that of the same fault."""
        row = self.faults.setdefault(more.fault, Fault(more.fault))
        row.tries += more.tries
        row.survived += more.survived
        row.lost += more.lost
        if more.recovery is not None:
            row.recovery = max(more.recovery, row.recovery or 0.0)

    @property
    def rows(self) -> list[Fault]:
        """All, by their names."""
        return [self.faults[name] for name in sorted(self.faults)]

    def table(self) -> str:
        """The rows in Markdown."""
        lines = [
            "| fault | tries | survived | lost examples | worst recovery, s |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            recovery = "" if row.recovery is None else f"{row.recovery:.1f}"
            lines.append(f"| {row.fault} | {row.tries} | {row.survived} | {row.lost} | {recovery} |")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``faults.json`` and ``README.md``."""
        made_by = {"command": COMMAND, "hardware": hardware(), "versions": versions() | {"platform": sys.platform}}
        rows = [asdict(row) for row in self.rows]
        write_text(folder / "faults.json", json.dumps({**made_by, "faults": rows}, indent=1) + "\n")
        with_what = ", ".join(f"{name} {version}" for name, version in versions().items())
        tries, survived = (sum(getattr(row, key) for row in self.rows) for key in ("tries", "survived"))
        text = f"# Faults\n\n`{COMMAND}` on {hardware()}; {with_what}. What each row is: `tests/faults/`.\n\n"
        text += f"{survived:,} of {tries:,} tries survived. A recovery is the time from the restart to the first "
        text += "update done, or, where the others are to stop, until they have.\n\n"
        write_text(folder / "README.md", text + self.table())
