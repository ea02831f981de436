"""What model cards have in common: of which datasets a model was made, how, and how to cite them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muppet_fairseq.provenance import versions
from muppet_fairseq.spec import read_dataset_json
from muppet_fairseq.tasks.muppet import MuppetTask

#: of training, what a reader of the card wants to know
TRAINING_OPTIONS = ("lr", "dropout", "batching", "dataset_sampling", "loss_scaling", "label_smoothing", "seed")

#: a dataset with more classes gets their number in the card, not their names
MAX_CLASSES = 30


def datasets_section(task: MuppetTask, data: Path | None, heads: Sequence[str | None] | None = None) -> list[str]:
    """Lines of the section "Datasets" of what ``task`` trained on.

    Args:
        data: the data-bin, which knows licences and citations, or None.
        heads: only datasets of these heads; None: all.
    """
    lines = ["## Datasets", "", "| dataset | family | classes | head | licence |", "| --- | --- | --- | --- | --- |"]
    citations = []
    for spec, head in zip(task.specs, task.heads, strict=True):
        if heads is not None and head not in heads:
            continue
        known = data is not None and (data / spec.name / "dataset.json").is_file()
        about = read_dataset_json(data / spec.name) if known else {}
        licence = about.get("licence") or "see its authors"
        # linearised trees have hundreds
        classes = ", ".join(spec.labels) if len(spec.labels) <= MAX_CLASSES else str(len(spec.labels))
        lines.append(f"| {spec.name} | {spec.family} | {classes} | {head or 'none'} | {licence} |")
        if about.get("citation"):
            citations.append(f"- {spec.name}: {about['citation']}")
    return [*lines, "", "Cite them:", "", *citations] if citations else lines


def training_section(options: Mapping[str, Any], task: MuppetTask) -> list[str]:
    """Lines of the section "How it was made", given the model's options."""
    lines = [f"- `{key}`: {options[key]}" for key in TRAINING_OPTIONS if options.get(key) is not None]
    lines.append(f"- `max_positions`: {task.layout.max_positions} tokens a row")
    return ["## How it was made", "", *lines, *(f"- {package} {number}" for package, number in versions().items())]
