"""What a report is made of, without the rest of the runs: small enough to be kept with the results.

A folder of records has the ``study.json`` of each study where a folder of runs has it, and all ``run.json`` in one
file, ``runs.jsonl``: a line for each run, with its folder as ``path``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.report.read import RECORDS, Study


def write_records(studies: Sequence[Study], folder: Path, out: Path) -> None:
    """Copy what ``studies``, all of ``folder``, were read from to ``out``. Raises MuppetError."""
    if out.resolve() == folder.resolve():
        raise MuppetError(f"--records {out} is the folder of the runs itself; name another one")
    paths = sorted({run.path for study in studies for run in study.runs})
    lines = [json.dumps({"path": path, **run}) for path in paths if (run := _described(folder, path))]
    for study in studies:
        place = Path("studies") / study.name / "study.json"
        write_text(out / place, (folder / place).read_text(encoding="utf-8"))
    write_text(out / RECORDS, "".join(f"{line}\n" for line in lines))


def _described(folder: Path, path: str) -> dict[str, Any] | None:
    """The run's ``run.json``, which was read without an error; None where it has none."""
    file = folder / path / "run.json"
    return orjson.loads(file.read_bytes()) if file.exists() else None
