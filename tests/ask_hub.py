"""Ask released models questions, in a process that finds the package through ``torch.hub`` alone.

Arguments: a JSON file with ``repository``, ``releases`` (folders by name), ``examples`` (lists by ``KIND DATASET``;
the kind ``long`` is asked with ``truncate=True``) and ``search``, and the file to write the answers to.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def questions(hub: Any, dataset: str, examples: list[dict]) -> tuple[Callable[..., Any], list[list]]:
    """The method that answers for a toy dataset, and its arguments: one list each."""
    parts = [[example["inputs"][i] for example in examples] for i in range(len(examples[0].get("inputs", [])))]
    if dataset == "counts":
        return lambda *texts, **more: hub.score("counts", *texts, **more), parts
    if dataset == "choices":
        return hub.choose, [[example[key] for example in examples] for key in ("context", "choices")]
    if dataset == "spans":
        return hub.answer, [[example[key] for example in examples] for key in ("question", "passage")]
    if dataset == "summaries":
        return hub.summarize, [[example["source"] for example in examples]]
    return lambda *texts, **more: hub.classify(dataset, *texts, **more), parts


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    # as on a machine where the package is not installed, whatever it is on this one
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
    answers: dict[str, Any] = {}
    for name, folder in given["releases"].items():
        hub = torch.hub.load(given["repository"], "muppet", source="local", checkpoint=folder)
        assert Path(sys.modules["muppet_fairseq"].__file__).is_relative_to(given["repository"])
        from muppet_fairseq.models import bart, roberta

        own = {"bart": bart.MuppetBartModel, "roberta": roberta.MuppetRobertaModel}[name]
        other = own.from_pretrained(folder)
        for key, examples in given["examples"].items():
            kind, _, dataset = key.partition(" ")
            if dataset not in hub.datasets:
                continue
            more = {"truncate": True} if kind == "long" and dataset != "spans" else {}
            more |= given["search"] if dataset == "summaries" else {}
            method, parts = questions(hub, dataset, examples)
            alone = [method(*question, **more) for question in zip(*parts, strict=True)]
            again, _ = questions(other, dataset, examples)
            answers[f"{name} {key}"] = [alone, method(*parts, **more), again(*parts, **more)]
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
