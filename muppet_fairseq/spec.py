"""What is known of a binarised dataset: :class:`DatasetSpec`, and the ``dataset.json`` that it comes from."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError, nearest
from muppet_fairseq.files import read_up_to, write_text

#: version of the layout of ``data-bin/<dataset>/``
FORMAT = 2
#: what a dataset, a split or a head may be called: it becomes the name of a file or folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
#: a file of a dataset, ``input0/train.bin``: never hidden, never outside its folder
_FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
#: bytes that a ``dataset.json`` may have
_LARGEST = 1 << 26
#: its keys, and what they hold
_KINDS: dict[str, Any] = {"format": int, "name": str, "family": str, "metric": str, "labels": list, "num_inputs": int}
_KINDS |= {"splits": dict, "dictionary": str, "tokenizer": dict, "entry": str, "source": str, "licence": str}
_KINDS |= {"citation": str, "note": str, "revision": dict | None, "files": dict, "sha256": str}


@dataclass(frozen=True)
class DatasetSpec:
    """What training, evaluation and the hub need to know of a dataset. Checkpoints carry it."""

    name: str
    family: str
    metric: str
    labels: tuple[str, ...] = ()
    num_inputs: int = 2
    head: str | None = None
    examples: int | None = None
    partition: int = 1

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetSpec:
        return cls(**values | {"labels": tuple(values["labels"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"labels": list(self.labels)}


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read and check ``folder/dataset.json``.

    Raises MuppetError when it is missing, broken, of another format, changed since it was written, or says what none
    can: a name that leads out of the folder, say, or a number that is none.
    """
    path = folder / "dataset.json"
    again = "prepare the dataset again"
    if path.exists() and not path.is_file():
        raise MuppetError(f"{path} is no file; {again}")
    try:
        meta = json.loads(read_up_to(path, _LARGEST).decode())
    except FileNotFoundError:
        raise MuppetError(f"{folder} has no dataset.json, so it is unfinished; {again}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MuppetError(f"{path} cannot be read ({error}); {again}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MuppetError(f"{path} is not of format {FORMAT}; {again} with this version")
    if meta.get("sha256") != _digest(meta):
        raise MuppetError(
            f"{path} is not as it was written; {again} (another metric, head or number of examples is said in a suite)"
        )
    if fault := _fault(meta, folder.name):
        raise MuppetError(f"{path}: {fault}; {again}")
    return meta


def write_dataset_json(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Write ``folder/dataset.json`` with its own digest, and return what it says."""
    meta = meta | {"sha256": _digest(meta)}
    write_text(folder / "dataset.json", json.dumps(meta, indent=1, ensure_ascii=False))
    return meta


def _digest(meta: dict[str, Any]) -> str:
    """SHA-256 of all that ``dataset.json`` says, but for this digest: damage is seen, white space makes none."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _fault(meta: dict[str, Any], name: str) -> str | None:
    """What is wrong with the values, or None. Where a digest is right, somebody has written them so."""
    for key, kind in _KINDS.items():
        if not isinstance(meta.get(key), kind):
            return f"{key!r} is missing or no {getattr(kind, '__name__', kind)}"
    if unknown := sorted(meta.keys() - _KINDS.keys()):
        return f"unknown key {unknown[0][:60]!r}{nearest(unknown[0][:60], _KINDS)}"
    for key in ("family", "metric"):
        if not NAME.fullmatch(meta[key]):
            return f"{key!r} is {meta[key][:60]!r}, which is no word"
    if meta["name"] != name:
        return f"it is of the dataset {meta['name'][:60]!r}, not of {name}"
    if meta["num_inputs"] not in (1, 2) or isinstance(meta["num_inputs"], bool):
        return f"'num_inputs' is {str(meta['num_inputs'])[:60]}, neither 1 nor 2"
    if not all(isinstance(label, str) for label in meta["labels"]):
        return "'labels' is no list of texts"
    if any(not isinstance(meta["tokenizer"].get(key), str) for key in ("type", "sha256")):
        return "'tokenizer' has no type or no sha256"
    for split, values in meta["splits"].items():
        if not NAME.fullmatch(split):
            return f"{split[:60]!r} is no name of a split"
        if not isinstance(values, dict) or not _is_count(values.get("examples")):
            return f"'splits' does not say how many examples {split!r} has"
    for file, values in meta["files"].items():
        if not _FILE.fullmatch(file):
            return f"'files' names {file[:60]!r}, which is no file of a dataset"
        if not isinstance(values, dict) or not _is_count(values.get("bytes")):
            return f"'files' does not say how many bytes {file!r} has"
        if not isinstance(values.get("sha256"), str):
            return f"'files' has no sha256 of {file!r}"
    return None


def _is_count(value: Any) -> bool:
    """Whether it is a whole number that fits into 64 bits (JSON's may have thousands of digits)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
