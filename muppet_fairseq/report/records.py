"""What a report is made of, without the rest of the runs: small enough to be kept with the results.

A folder of records has the ``study.json`` of each study where a folder of runs has it, and all ``run.json`` in one
file, ``runs.jsonl``: a line for each run, with its folder as ``path``. What it says is finished need not be done again
(:func:`restore`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.report.read import RECORDS, Study, read_records, read_studies


def write_records(studies: Sequence[Study], folder: Path, out: Path) -> None:
    """Copy what ``studies``, all of ``folder``, were read from to ``out``, beside the studies that it has of others.

    Raises MuppetError.
    """
    if out.resolve() == folder.resolve():
        raise MuppetError(f"--records {out} is the folder of the runs itself; name another one")
    found = read_records(out)
    for study in studies:
        place = Path("studies") / study.name / "study.json"
        write_text(out / place, (folder / place).read_text(encoding="utf-8"))
        found |= {run.path: described for run in study.runs if (described := _described(folder, run.path))}
    named = sorted({run.path for study in read_studies([out]) for run in study.runs} & found.keys())
    write_text(out / RECORDS, "".join(json.dumps({"path": path, **found[path]}) + "\n" for path in named))


def restore(paths: Iterable[Path], folder: Path, records: Path) -> None:
    """Write the ``run.json`` of those runs to ``folder`` that have none there and that ``records`` says are finished.

    Raises MuppetError.
    """
    found = read_records(records)
    for path in paths:
        recorded, file = found.get(str(path), {}), folder / path / "run.json"
        if recorded.get("state") == "finished" and not file.exists():
            write_text(file, json.dumps(recorded, indent=1) + "\n")


def _described(folder: Path, path: str) -> dict[str, Any] | None:
    """The run's ``run.json``, which was read without an error; None where it has none."""
    file = folder / path / "run.json"
    return orjson.loads(file.read_bytes()) if file.exists() else None
