"""What is known of a binarised dataset: :class:`DatasetSpec`, and the ``dataset.json`` that it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muppet_fairseq.errors import MuppetError

#: version of the layout of ``data-bin/<dataset>/``
FORMAT = 1


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
    """Read and check ``folder/dataset.json``. Raises MuppetError when it is missing, broken or of another format."""
    path = folder / "dataset.json"
    again = "prepare the dataset again"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MuppetError(f"{folder} has no dataset.json, so it is unfinished; {again}") from None
    except (OSError, ValueError) as error:
        raise MuppetError(f"{path} cannot be read ({error}); {again}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MuppetError(f"{path} is not of format {FORMAT}; {again} with this version")
    wanted = {"name": str, "family": str, "metric": str, "labels": list, "num_inputs": int, "splits": dict}
    wanted |= {"dictionary": str, "files": dict}
    for key, kind in wanted.items():
        if not isinstance(meta.get(key), kind):
            raise MuppetError(f"{path}: {key!r} is missing or no {kind.__name__}; {again}")
    for key, count in (("splits", "examples"), ("files", "bytes")):
        for name, values in meta[key].items():
            if not isinstance(values, dict) or not isinstance(values.get(count), int):
                raise MuppetError(f"{path}: {key!r} does not say how many {count} {name!r} has; {again}")
    return meta
