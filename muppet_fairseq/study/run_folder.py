"""The folder of a run: what it is, how far it is, and what came out, in ``run.json``.

Its state is ``running`` from the first process on, then ``finished`` or ``failed``; a run that is ``running`` while
nobody works on it was interrupted, and goes on where it can.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError
from muppet_fairseq.files import write_text
from muppet_fairseq.prompts.count import PARAMETERS
from muppet_fairseq.provenance import hardware, versions
from muppet_fairseq.report.read import FORMAT
from muppet_fairseq.study.expand import Run


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run; empty where it has not been started. Raises MuppetError for what is no such file."""
    path = folder / "run.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MuppetError(f"{path} cannot be read ({error}); delete its folder, and the run is done again") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise MuppetError(f"{path} is not of format {FORMAT}; delete its folder, and the run is done again")
    return described


def describe_run(
    run: Run, state: str, commands: Sequence[str], seconds: float, reason: str | None = None
) -> dict[str, Any]:
    """What ``run.json`` says of a run in any state."""
    return {
        "format": FORMAT,
        "kind": run.kind,
        "name": run.label,
        "state": state,
        "reason": reason,
        "seed": run.seed,
        "commands": list(commands),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "hardware": hardware(),
    }


def write_run(folder: Path, described: dict[str, Any]) -> None:
    write_text(folder / "run.json", json.dumps(described, indent=1) + "\n")


def training_of(folder: Path) -> dict[str, Any]:
    """Updates, mean scaled loss and R3F's divergence at the end of ``train.log``, and how many parameters were trained
    and frozen.

    Raises MuppetError where the log does not say how the training ended.
    """
    log = folder / "train.log"
    stats = last_logged(log, "train")
    loss = float(stats["train_loss"])
    if not math.isfinite(loss):
        raise MuppetError(f"{log}: the loss is {loss} at the end; a lower learning rate may help")
    training: dict[str, Any] = {"updates": int(stats["train_num_updates"]), "loss": loss}
    if "train_divergence" in stats:
        training["divergence"] = float(stats["train_divergence"])
    with suppress(MuppetError):  # earlier versions did not log them
        training["parameters"] = last_logged(log, PARAMETERS)
    return training


def results_of(folder: Path) -> dict[str, Any]:
    """Results of ``evaluation.json`` by dataset. Raises MuppetError where it has none."""
    path = folder / "evaluation.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["results"]
        return {result.pop("dataset"): {**result, "metric": next(iter(result["metrics"]))} for result in results}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MuppetError(f"{path} has no results ({error})") from None


def last_logged(log: Path, tag: str) -> dict[str, Any]:
    """The last JSON line with ``tag`` (``train``, ``train_inner``, ``parameters``) in ``log``.

    Raises MuppetError when there is none.
    """
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    # a process that was killed may have left half a line, which the next one has gone on with
    found = re.findall(rf"^.*\| {tag} \| (\{{.*\}})$", text, flags=re.MULTILINE)
    if not found:
        raise MuppetError(f"{log} has no line of {tag!r}: the run did not get there")
    return json.loads(found[-1])
